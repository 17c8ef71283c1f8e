//! One YOLO label file: one line `class cx cy w h` per object, as fractions of the image's size.

/// Largest accepted share of the image's width or height.
const MOST: f64 = 2.0;

/// One object of a label file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Object {
    /// Class, from 0.
    pub class: usize,
    /// `[x, y, w, h]` in pixels.
    pub bbox: [f64; 4],
    /// Whether the line is a polygon; `bbox` is then its bounding box.
    pub polygon: bool,
}

/// Parses the label file of an image of `size` (width, height) in a data set with `classes`
/// classes. With `keypoints`, each box is followed by that many numbers, which are ignored.
///
/// # Errors
/// The line, what was expected and what was found.
pub fn parse(
    text: &str,
    size: (u32, u32),
    classes: usize,
    keypoints: Option<usize>,
) -> Result<Vec<Object>, String> {
    // Also lines that end in a carriage return alone.
    let lines = text.lines().flat_map(|l| l.split('\r'));
    let lines = (1..).zip(lines).filter(|(_, l)| !l.trim().is_empty());
    let parse = |line: &str| object(line, size, classes, keypoints);
    lines.map(|(n, l)| parse(l).map_err(|e| format!("line {n}: {e}"))).collect()
}

fn object(
    line: &str,
    size: (u32, u32),
    classes: usize,
    keypoints: Option<usize>,
) -> Result<Object, String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let class = class(words[0], classes)?;
    let number = |w: &&str| -> Result<f64, String> {
        let value: Option<f64> = w.parse().ok();
        // Parts of a box may be outside the image, but pixels are not taken for shares.
        value.filter(|v| v.abs() <= MOST).ok_or_else(|| {
            format!("expected a share of the image's width or height, 0 to 1, found `{w}`")
        })
    };
    let mut values = words[1..].iter().map(number).collect::<Result<Vec<f64>, _>>()?;
    if let Some(more) = keypoints {
        if values.len() != 4 + more {
            return Err(format!(
                "expected `class cx cy w h` and the {more} numbers of `kpt_shape`, found {} \
                 numbers",
                words.len()
            ));
        }
        values.truncate(4);
    }
    let (width, height) = (f64::from(size.0), f64::from(size.1));
    match values[..] {
        [cx, cy, w, h] => {
            let (x, y) = (cx * width - w * width / 2.0, cy * height - h * height / 2.0);
            let bbox = [x, y, w * width, h * height].map(nearest_half);
            Ok(Object { class, bbox, polygon: false })
        }
        [..] if values.len() >= 6 && values.len() % 2 == 0 => {
            let range = |at: usize, side: f64| {
                let points = values[at..].iter().step_by(2).map(|v| v * side);
                let (low, high) = points.fold((f64::MAX, f64::MIN), |(low, high), v| {
                    (f64::min(low, v), f64::max(high, v))
                });
                (low, high - low)
            };
            let ((x, w), (y, h)) = (range(0, width), range(1, height));
            Ok(Object { class, bbox: [x, y, w, h].map(nearest_half), polygon: true })
        }
        _ => Err(format!(
            "expected `class cx cy w h`, or `class x1 y1 x2 y2 x3 y3 ...` for a polygon, found {} \
             numbers",
            words.len()
        )),
    }
}

/// A class number; some tools write `3.0`.
fn class(word: &str, classes: usize) -> Result<usize, String> {
    let value: Option<f64> = word.parse().ok();
    let value = value.filter(|v| v.fract() == 0.0 && *v >= 0.0 && *v < classes as f64);
    value.map(|v| v as usize).ok_or_else(|| {
        format!("expected a class from 0 to {}, found `{word}`", classes.saturating_sub(1))
    })
}

/// Undoes the rounding from the division by the image's size, after which most integer and
/// half-integer coordinates are no longer exact. Values that are 1e-9 pixels or more away from one
/// are kept.
fn nearest_half(v: f64) -> f64 {
    let half = (2.0 * v).round() / 2.0;
    // Adding 0 turns -0 into 0.
    if (v - half).abs() < 1e-9 { half + 0.0 } else { v }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Boxes with integer and half-integer coordinates survive the conversion to fractions and
    /// back.
    #[test]
    fn whole_and_half_pixels_are_exact() {
        for (width, height) in [(200u32, 200u32), (640, 480), (1333, 797), (37, 8191)] {
            for n in 0..400u32 {
                let (w, h) = (1.0 + f64::from(n * 7 % width) / 2.0, 1.5 + f64::from(n % 5));
                let (x, y) = (f64::from(n * 13 % width) / 2.0, f64::from(n % 3) / 2.0);
                let (fw, fh) = (f64::from(width), f64::from(height));
                let text = format!(
                    "2 {} {} {} {}",
                    (x + w / 2.0) / fw,
                    (y + h / 2.0) / fh,
                    w / fw,
                    h / fh
                );
                let found = parse(&text, (width, height), 3, None).unwrap();
                assert_eq!(found[0].bbox, [x, y, w, h], "{text}");
            }
        }
    }

    #[test]
    fn polygons_become_their_bounding_boxes() {
        let found = parse("1.0 0.1 0.2 0.5 0.9 0.3 0.4\n\n", (10, 20), 2, None).unwrap();
        assert_eq!(found, [Object { class: 1, bbox: [1.0, 4.0, 4.0, 14.0], polygon: true }]);
        assert!(parse(" \n", (10, 20), 2, None).unwrap().is_empty());
        let lines = "0 0.5 0.5 0.1 0.1\r1 0.5 0.5 0.1 0.1\r\n\r\n0 0.5 0.5 0.1 0.1\r";
        assert_eq!(parse(lines, (10, 20), 2, None).unwrap().len(), 3);
    }

    #[test]
    fn keypoints_behind_a_box_are_no_polygon() {
        let found = parse("0 0.5 0.5 0.2 0.4 0.1 0.2 0.3 0.4", (10, 10), 1, Some(4)).unwrap();
        assert_eq!(found, [Object { class: 0, bbox: [4.0, 3.0, 2.0, 4.0], polygon: false }]);
        let problem = parse("0 0.5 0.5 0.2 0.4", (10, 10), 1, Some(4)).unwrap_err();
        assert!(problem.contains("kpt_shape") && problem.contains("found 5"), "{problem}");
    }

    #[test]
    fn invalid_lines_are_refused_with_their_number() {
        for (text, word) in [
            ("0 0.5 0.5 0.1 0.1\n2 0.5 0.5 0.1 0.1", "line 2: expected a class from 0 to 1"),
            ("-1 0.5 0.5 0.1 0.1", "line 1"),
            ("0.5 0.5 0.5 0.1 0.1", "class"),
            ("0 0.5 0.5 0.1", "found 4 numbers"),
            ("0 0.5 0.5 0.1 0.1 0.9", "found 6 numbers"),
            ("0 0.5 nan 0.1 0.1", "`nan`"),
            ("0 0.5 1e300 0.1 0.1", "`1e300`"),
            ("0 120 50 30 30", "0 to 1, found `120`"),
            ("dog 0.5 0.5 0.1 0.1", "`dog`"),
        ] {
            let problem = parse(text, (10, 10), 2, None).unwrap_err();
            assert!(problem.contains(word), "{text}: {problem}");
        }
    }
}
