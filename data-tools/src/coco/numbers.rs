//! Numbers as other tools write them: whole numbers with a decimal point, flags as `true` and
//! `false`.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// Largest number up to which every whole number is a double.
const EXACT: f64 = 9_007_199_254_740_992.0;

/// A whole number in a field.
struct Whole(&'static str);

impl Whole {
    fn refuse<E: Error>(&self, found: impl fmt::Display) -> E {
        E::custom(format!("`{}`: expected a whole number, found {found}", self.0))
    }
}

impl Visitor<'_> for Whole {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number in `{}`", self.0)
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<i64, E> {
        Ok(v)
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<i64, E> {
        i64::try_from(v).map_err(|_| self.refuse(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<i64, E> {
        if v.fract() == 0.0 && v.abs() <= EXACT { Ok(v as i64) } else { Err(self.refuse(v)) }
    }
}

/// 0, 1, false or true in a field.
struct Flag(&'static str);

impl Flag {
    fn of<E: Error>(&self, number: f64) -> Result<bool, E> {
        match number {
            0.0 => Ok(false),
            1.0 => Ok(true),
            _ => Err(E::custom(format!(
                "`{}`: expected 0, 1, false or true, found {number}",
                self.0
            ))),
        }
    }
}

impl Visitor<'_> for Flag {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "0, 1, false or true in `{}`", self.0)
    }

    fn visit_bool<E: Error>(self, v: bool) -> Result<bool, E> {
        Ok(v)
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<bool, E> {
        self.of(v as f64)
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<bool, E> {
        self.of(v as f64)
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<bool, E> {
        self.of(v)
    }
}

fn size<'de, D: Deserializer<'de>>(d: D, field: &'static str) -> Result<u32, D::Error> {
    let v = d.deserialize_any(Whole(field))?;
    u32::try_from(v)
        .map_err(|_| D::Error::custom(format!("`{field}`: expected a number of pixels, found {v}")))
}

/// `id`.
pub(super) fn id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Whole("id"))
}

/// `image_id`.
pub(super) fn image_id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Whole("image_id"))
}

/// `category_id`.
pub(super) fn category_id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Whole("category_id"))
}

/// `width`, pixels.
pub(super) fn width<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    size(d, "width")
}

/// `height`, pixels.
pub(super) fn height<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    size(d, "height")
}

/// `iscrowd`.
pub(super) fn iscrowd<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    d.deserialize_any(Flag("iscrowd"))
}
