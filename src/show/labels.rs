//! Placement of box labels: near the box, inside the picture, and without overlap.

/// A rectangle in whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// x of the left edge.
    pub x: i32,
    /// y of the upper edge.
    pub y: i32,
    /// Width.
    pub w: i32,
    /// Height.
    pub h: i32,
}

impl Area {
    fn overlaps(&self, o: &Self) -> bool {
        self.x < o.x + o.w && o.x < self.x + self.w && self.y < o.y + o.h && o.y < self.y + self.h
    }

    fn is_inside(&self, (w, h): (i32, i32)) -> bool {
        self.x >= 0 && self.y >= 0 && self.x + self.w <= w && self.y + self.h <= h
    }
}

/// The area of a label of `size` for the box `target` in a picture of size `picture`, sizes as (w,
/// h) in pixels. Tries above the box, inside its top, below it and inside its bottom, each aligned
/// left and right; then the free area nearest to the box's upper left corner. `None` when the
/// picture has no free area left.
pub fn place(size: (i32, i32), target: &Area, picture: (i32, i32), taken: &[Area]) -> Option<Area> {
    let (w, h) = size;
    let (left, right) = (target.x, target.x + target.w - w);
    let (top, bottom) = (target.y, target.y + target.h);
    let near =
        [top - h, top, bottom, bottom - h].into_iter().flat_map(|y| [left, right].map(|x| (x, y)));
    // A label may be moved horizontally to stay inside the picture.
    let clamped = |x: i32| x.clamp(0, (picture.0 - w).max(0));
    let free = |&(x, y): &(i32, i32)| {
        let area = Area { x, y, w, h };
        area.is_inside(picture) && !taken.iter().any(|t| t.overlaps(&area))
    };
    let at = |(x, y)| Area { x, y, w, h };
    if let Some(place) = near.map(|(x, y)| (clamped(x), y)).find(free) {
        return Some(at(place));
    }
    let columns = (0..=(picture.0 - w).max(0)).step_by((w / 4).max(1) as usize);
    let rows = (0..=(picture.1 - h).max(0)).step_by((h / 2).max(1) as usize);
    let all = rows.flat_map(|y| columns.clone().map(move |x| (x, y)));
    let distance = |&(x, y): &(i32, i32)| i64::from(x - left).pow(2) + i64::from(y - top).pow(2);
    all.filter(free).min_by_key(distance).map(at)
}

/// Shortens a text to at most `max` characters by replacing its middle with an ellipsis.
pub fn shorten(text: &str, max: usize) -> String {
    let all: Vec<char> = text.chars().collect();
    if all.len() <= max || max < 3 {
        return all.into_iter().take(max).collect();
    }
    let (head, tail) = ((max - 1) / 2, max - 1 - (max - 1) / 2);
    all[..head].iter().chain(&['…']).chain(&all[all.len() - tail..]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_never_overlap() {
        let picture = (320, 240);
        let mut taken = vec![];
        for i in 0..30 {
            // Many boxes with nearly the same position, and some partly outside the picture.
            let target = Area { x: 100 + i % 5, y: 60 + i % 3, w: 90, h: 60 };
            let target = if i % 7 == 0 { Area { x: 300, y: -20, ..target } } else { target };
            let label = place((70, 16), &target, picture, &taken).unwrap();
            assert!(
                label.is_inside(picture) && !taken.iter().any(|t: &Area| t.overlaps(&label)),
                "{i}: {label:?}"
            );
            taken.push(label);
        }
        let first = Area { x: 100, y: 60 - 16, w: 70, h: 16 };
        assert_eq!(
            place((70, 16), &Area { x: 100, y: 60, w: 90, h: 60 }, picture, &[]),
            Some(first),
            "above the box"
        );
        assert_eq!(place((400, 16), &first, picture, &[]), None, "wider than the picture");
    }

    #[test]
    fn shortened_names_keep_both_ends() {
        assert_eq!(shorten("000000581781.jpg", 20), "000000581781.jpg");
        assert_eq!(shorten("a_very_long_name_indeed.jpg", 11), "a_ver…d.jpg");
    }
}
