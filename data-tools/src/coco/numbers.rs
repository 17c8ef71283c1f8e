//! Numbers as written by various tools: integers with a decimal point, flags as `true` and `false`.

use std::fmt;

use serde::de::{Deserializer, Error, Visitor};

/// 2^53: every integer up to this magnitude is exact as `f64`.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Visitor of an integer; holds the name of the field.
struct Integer(&'static str);

impl Integer {
    fn error<E: Error>(&self, found: impl fmt::Display) -> E {
        E::custom(format!("`{}`: expected an integer, found {found}", self.0))
    }
}

impl Visitor<'_> for Integer {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer in `{}`", self.0)
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<i64, E> {
        Ok(v)
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<i64, E> {
        i64::try_from(v).map_err(|_| self.error(v))
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<i64, E> {
        if v.fract() == 0.0 && v.abs() <= MAX_EXACT { Ok(v as i64) } else { Err(self.error(v)) }
    }
}

/// Visitor of 0, 1, `false`, `true` or `null` (false); holds the name of the field.
struct Flag(&'static str);

impl Flag {
    fn parse<E: Error>(&self, number: f64) -> Result<bool, E> {
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

    fn visit_unit<E: Error>(self) -> Result<bool, E> {
        Ok(false)
    }

    fn visit_i64<E: Error>(self, v: i64) -> Result<bool, E> {
        self.parse(v as f64)
    }

    fn visit_u64<E: Error>(self, v: u64) -> Result<bool, E> {
        self.parse(v as f64)
    }

    fn visit_f64<E: Error>(self, v: f64) -> Result<bool, E> {
        self.parse(v)
    }
}

/// A number of pixels.
fn size<'de, D: Deserializer<'de>>(d: D, field: &'static str) -> Result<u32, D::Error> {
    let v = d.deserialize_any(Integer(field))?;
    u32::try_from(v)
        .map_err(|_| D::Error::custom(format!("`{field}`: expected a number of pixels, found {v}")))
}

/// Deserialises the field `id`.
pub(super) fn id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Integer("id"))
}

/// Deserialises the field `image_id`.
pub(super) fn image_id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Integer("image_id"))
}

/// Deserialises the field `category_id`.
pub(super) fn category_id<'de, D: Deserializer<'de>>(d: D) -> Result<i64, D::Error> {
    d.deserialize_any(Integer("category_id"))
}

/// Deserialises the field `width`, in pixels.
pub(super) fn width<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    size(d, "width")
}

/// Deserialises the field `height`, in pixels.
pub(super) fn height<'de, D: Deserializer<'de>>(d: D) -> Result<u32, D::Error> {
    size(d, "height")
}

/// Deserialises the field `iscrowd`.
pub(super) fn iscrowd<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    d.deserialize_any(Flag("iscrowd"))
}

/// Deserialises the field `ignore`.
pub(super) fn ignore<'de, D: Deserializer<'de>>(d: D) -> Result<bool, D::Error> {
    d.deserialize_any(Flag("ignore"))
}
