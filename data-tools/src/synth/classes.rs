//! Classes of the synthetic data set.

/// Shapes, in the order of the classes.
pub(super) const SHAPES: [&str; 8] =
    ["disc", "square", "triangle", "star", "ring", "cross", "moon", "zigzag"];
/// Styles. Each combination of shape and style is a class.
const STYLES: [&str; 4] = ["plain", "striped", "dotted", "hollow"];
/// Highest number of classes.
pub(super) const MAX_CLASSES: usize = SHAPES.len() * STYLES.len();

/// Name of a class: `disc` to `zigzag`, then `striped disc`, ...
pub(super) fn class_name(class: usize) -> String {
    match class / SHAPES.len() {
        0 => SHAPES[class].to_owned(),
        style => format!("{} {}", STYLES[style], SHAPES[class % SHAPES.len()]),
    }
}

/// COCO category id of a class. Odd numbers only, so that ids and labels differ.
pub(super) fn category_id(class: usize) -> usize {
    2 * class + 1
}
