//! Numbers as text. An undefined number (-1, NaN) is an en dash, which the page's tables sort last.

/// An undefined number.
pub(super) const NONE: &str = "–";

/// A fraction in points of 100: `0.4123` is `41.2`.
pub(super) fn points(fraction: f64) -> String {
    if fraction >= 0.0 { format!("{:.1}", fraction * 100.0) } else { NONE.into() }
}

/// A difference in points of 100, with its sign.
pub(super) fn delta(from: f64, to: f64) -> String {
    if from >= 0.0 && to >= 0.0 { signed((to - from) * 100.0) } else { NONE.into() }
}

/// One decimal with its sign, which is U+2212 for a minus.
pub(super) fn signed(v: f64) -> String {
    match format!("{v:+.1}").as_str() {
        "+0.0" | "-0.0" => "0.0".into(),
        s => s.replace('-', "−"),
    }
}

/// Class of a [`signed`] number in the stylesheet: `good`, `bad` or empty.
pub(super) fn trend(signed: &str) -> &'static str {
    match signed.chars().next() {
        Some('+') => "good",
        Some('−') => "bad",
        _ => "",
    }
}

/// A score, precision or F1 with three decimals.
pub(super) fn score(v: Option<f64>) -> String {
    v.map_or(NONE.into(), |v| format!("{v:.3}"))
}

/// A count with separated thousands.
pub(super) fn count(n: usize) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

/// A count with the singular or plural of a noun.
pub(super) fn counted(n: usize, one: &str, many: &str) -> String {
    format!("{} {}", count(n), if n == 1 { one } else { many })
}

/// At most two decimals, without trailing zeros.
pub(super) fn short(v: f64) -> String {
    let s = format!("{v:.2}");
    if v.is_finite() { s.trim_end_matches('0').trim_end_matches('.').into() } else { "∞".into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_separators_and_undefined_numbers() {
        assert_eq!(
            (points(0.4126), points(-1.0), points(f64::NAN)),
            ("41.3".into(), NONE.into(), NONE.into())
        );
        assert_eq!(
            (delta(0.5, 0.512), delta(0.5, 0.488), delta(0.5, 0.5), delta(-1.0, 0.5)),
            ("+1.2".into(), "−1.2".into(), "0.0".into(), NONE.into())
        );
        assert_eq!(
            (trend("+1.2"), trend("−1.2"), trend("0.0"), trend(NONE)),
            ("good", "bad", "", "")
        );
        assert_eq!(counted(1, "image", "images"), "1 image");
        assert_eq!(count(1_234_567), "1\u{202f}234\u{202f}567");
        assert_eq!(
            (short(0.50), short(1024.0), short(f64::INFINITY)),
            ("0.5".into(), "1024".into(), "∞".into())
        );
    }
}
