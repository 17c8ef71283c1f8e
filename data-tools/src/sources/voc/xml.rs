//! One annotation file of Pascal VOC.

use roxmltree::{Document, Node, ParsingOptions};

/// Maximum number of XML nodes of an annotation file: about 100,000 objects.
const MAX_NODES: u32 = 2_000_000;

/// The contents of an annotation file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct File {
    /// `filename`, which many tools do not keep up to date.
    pub filename: Option<String>,
    /// Width and height in pixels; `None` where missing or 0.
    pub size: Option<(u32, u32)>,
    /// Objects in file order.
    pub objects: Vec<Object>,
}

/// One object.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Name of the class.
    pub name: String,
    /// Whether it is marked as difficult.
    pub difficult: bool,
    /// `[xmin, ymin, xmax, ymax]` as written: pixels counted from 1, both ends inclusive.
    pub corners: [f64; 4],
}

/// Parses an annotation file.
///
/// # Errors
/// Malformed XML, a document type, a missing or invalid field; the message contains the problem
/// and, where known, the line.
pub fn parse(text: &str) -> Result<File, String> {
    // Entities defined in a document type could expand to any size.
    let options =
        ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options).map_err(|e| e.to_string())?;
    let root = document.root_element();
    if root.tag_name().name() != "annotation" {
        let found = root.tag_name().name();
        return Err(format!("expected the element `annotation`, found `{found}`"));
    }
    let objects = root.children().filter(|n| n.has_tag_name("object"));
    let objects = objects.map(|n| object(n).map_err(|e| format!("{}: {e}", line(&document, n))));
    Ok(File {
        filename: text_of(root, "filename").map(str::to_owned),
        size: size(root).map_err(|e| format!("`size`: {e}"))?,
        objects: objects.collect::<Result<_, _>>()?,
    })
}

/// The line of a node, for messages.
fn line(document: &Document, node: Node) -> String {
    format!("line {}", document.text_pos_at(node.range().start).row)
}

/// The trimmed text of a child element; `None` if it is missing or empty.
fn text_of<'a>(node: Node<'a, '_>, name: &str) -> Option<&'a str> {
    let child = node.children().find(|n| n.has_tag_name(name))?;
    child.text().map(str::trim).filter(|t| !t.is_empty())
}

/// A number in a child element.
fn number(node: Node, name: &str) -> Result<f64, String> {
    let Some(text) = text_of(node, name) else { return Err(format!("missing `{name}`")) };
    let value: Option<f64> = text.parse().ok();
    value
        .filter(|v| v.is_finite())
        .ok_or_else(|| format!("`{name}`: expected a number, found `{text}`"))
}

fn size(root: Node) -> Result<Option<(u32, u32)>, String> {
    let Some(node) = root.children().find(|n| n.has_tag_name("size")) else { return Ok(None) };
    let side = |name| {
        let v = number(node, name)?;
        if v.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&v) {
            Ok(v as u32)
        } else {
            Err(format!("`{name}`: expected a number of pixels, found {v}"))
        }
    };
    let size = (side("width")?, side("height")?);
    Ok((size.0 > 0 && size.1 > 0).then_some(size))
}

fn object(node: Node) -> Result<Object, String> {
    let name = text_of(node, "name").ok_or("`object`: missing `name`")?.to_owned();
    let difficult = match text_of(node, "difficult") {
        None => false,
        Some(text) => match text.to_ascii_lowercase().as_str() {
            "0" | "false" => false,
            "1" | "true" => true,
            _ => return Err(format!("`difficult`: expected 0 or 1, found `{text}`")),
        },
    };
    let corners = node.children().find(|n| n.has_tag_name("bndbox"));
    let corners = corners.ok_or_else(|| format!("object `{name}`: missing `bndbox`"))?;
    let corner = |key| number(corners, key).map_err(|e| format!("object `{name}`: {e}"));
    let corners = [corner("xmin")?, corner("ymin")?, corner("xmax")?, corner("ymax")?];
    Ok(Object { name, difficult, corners })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CORNERS: &str =
        "<bndbox><xmin>2</xmin><ymin>3.5</ymin><xmax>10</xmax><ymax>9</ymax></bndbox>";

    fn with(object: &str) -> String {
        format!(
            "<annotation><filename>a.jpg</filename><size><width>20</width><height>10</height>\
             </size><object>{object}</object></annotation>"
        )
    }

    #[test]
    fn parts_of_an_object_are_not_objects() {
        let part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>";
        let file = parse(&with(&format!("<name> dog </name>{part}{CORNERS}"))).unwrap();
        assert_eq!((file.filename.as_deref(), file.size), (Some("a.jpg"), Some((20, 10))));
        assert_eq!(file.objects.len(), 1);
        assert_eq!(file.objects[0].name, "dog");
        assert_eq!(file.objects[0].corners, [2.0, 3.5, 10.0, 9.0]);
        assert!(!file.objects[0].difficult);
        assert!(parse("<annotation/>").unwrap().objects.is_empty());
    }

    #[test]
    fn invalid_files_are_refused_with_a_place() {
        let bomb = "<!DOCTYPE a [<!ENTITY x \"xxxxxxxx\">]><annotation>&x;</annotation>";
        let deep = "<a>".repeat(1_000_000);
        let open = with(&format!("<name>a</name><difficult>2</difficult>{CORNERS}"));
        let nan = with(&format!("<name>a</name>{}", CORNERS.replace("10", "nan")));
        for (text, word) in [
            (bomb, "DTD"),
            (&*deep, ""),
            ("", ""),
            ("<other/>", "`annotation`"),
            (&with(CORNERS), "line 1: `object`: missing `name`"),
            (&with("<name>a</name>"), "missing `bndbox`"),
            (&open, "`difficult`"),
            (&nan, "`xmax`"),
        ] {
            let problem = parse(text).unwrap_err();
            assert!(problem.contains(word), "{problem}");
        }
    }
}
