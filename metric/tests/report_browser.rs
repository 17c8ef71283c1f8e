//! Tests the report page in a headless Chromium, if installed: sorting, filtering, curves of a
//! class, no errors, no requests.

mod report_support;

use std::path::Path;
use std::process::Command;

use dw_metric::report::{Input, render};
use report_support::{Data, evaluated, input};

/// Runs before the page's own script.
const BEFORE: &str =
    "<script>window.wrong = []; addEventListener('error', (e) => wrong.push(e.message));
addEventListener('securitypolicyviolation', (e) => wrong.push(e.blockedURI));
console.error = (...a) => wrong.push(a.join(' '));</script>";

/// Operates the page, then writes the observed state into it as JSON.
const AFTER: &str = r#"<script>addEventListener('load', () => {
const seen = {};
const column = (table, i) => [...document.getElementById(table).tBodies[0].rows]
  .filter((r) => !r.hidden).map((r) => r.cells[i].textContent);
const head = (i) => document.getElementById('classes').tHead.rows[0].cells[i];
const click = (i) => head(i).querySelector('button').click();
click(1); seen.down = column('classes', 1); seen.sort = head(1).getAttribute('aria-sort');
click(1); seen.up = column('classes', 1);
click(0); seen.names = column('classes', 0);
const set = (id, value, event) => {
  const element = document.getElementById(id);
  element.value = value; element.dispatchEvent(new Event(event));
};
set('classes-filter', 'Kind 2', 'input'); seen.filtered = column('classes', 0);
const points = () => document.querySelector('#recall .series').getAttribute('points');
const mean = points();
set('recall-class', '1', 'change'); seen.changed = points() !== mean;
seen.points = points().split(' ').length;
set('recall-class', '', 'change'); seen.back = points() === mean;
document.querySelector('[data-layer="false"]').click();
seen.hidden = [...document.querySelectorAll('.shot rect.false')]
  .every((r) => getComputedStyle(r).display === 'none');
const page = document.documentElement;
seen.wide = page.scrollWidth > page.clientWidth;
seen.requests = performance.getEntriesByType('resource')
  .map((r) => r.name).filter((n) => !n.startsWith('data:'));
seen.wrong = wrong;
const out = document.createElement('pre');
out.id = 'seen'; out.textContent = '@@' + JSON.stringify(seen) + '@@';
document.body.append(out); });</script>"#;

fn chromium() -> Option<&'static str> {
    let works =
        |c: &&str| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success());
    ["chromium", "chromium-browser", "google-chrome"].into_iter().find(works)
}

/// The observed state of a page at a window width.
fn read(browser: &str, folder: &Path, page: &str, width: usize) -> serde_json::Value {
    let page = page.replacen("<head>", &format!("<head>{BEFORE}"), 1).replacen(
        "</body>",
        &format!("{AFTER}</body>"),
        1,
    );
    let file = folder.join("page.html");
    std::fs::write(&file, page).unwrap();
    let flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--dump-dom",
    ];
    let out = Command::new(browser)
        .args(flags)
        .arg(format!("--user-data-dir={}", folder.join(format!("profile{width}")).display()))
        .arg(format!("--window-size={width},900"))
        .arg(format!("file://{}", file.display()))
        .output()
        .unwrap();
    let dom = String::from_utf8(out.stdout).unwrap();
    let json = dom
        .rsplit("@@")
        .nth(1)
        .unwrap_or_else(|| panic!("no result: {}", String::from_utf8_lossy(&out.stderr)));
    serde_json::from_str(&json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
        .unwrap()
}

#[test]
fn the_page_works_in_a_browser() {
    let Some(browser) = chromium() else {
        println!("skipped: Chromium is not installed");
        return;
    };
    let mut data = Data::new(30, 30, 0.4);
    // A class without ground truth has no numbers.
    data.truth.retain(|t| t.category_id != 6);
    data.names[4] = "<i>&\"x\"".into();
    let problem = data.problem();
    let evaluation = evaluated(&problem);
    let one = input(&data, &problem, &evaluation);
    let folder = tempfile::tempdir().unwrap();
    for (inputs, width) in [(&[one][..], 1280), (&[one, Input { title: "B", ..one }][..], 500)] {
        let seen = read(browser, folder.path(), &render(inputs).unwrap(), width);
        let numbers = |k: &str| -> Vec<Option<f64>> {
            seen[k].as_array().unwrap().iter().map(|v| v.as_str().unwrap().parse().ok()).collect()
        };
        for (key, sign) in [("down", -1.0), ("up", 1.0)] {
            let all = numbers(key);
            assert_eq!(all.len(), 30);
            let known: Vec<f64> = all.iter().map_while(|v| *v).collect();
            assert!(known.windows(2).all(|w| w[0] * sign <= w[1] * sign), "{key}: {all:?}");
            assert!(
                known.len() < 30 && all[known.len()..].iter().all(Option::is_none),
                "{key}: {all:?}"
            );
        }
        assert_eq!(seen["sort"], "descending");
        let names: Vec<&str> =
            seen["names"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
        assert_eq!(names[..4], ["<i>&\"x\"", "kind 1", "kind 2", "kind 3"]);
        assert_eq!(seen["filtered"].as_array().unwrap().len(), 11);
        assert_eq!(
            (seen["changed"].as_bool(), seen["back"].as_bool(), seen["points"].as_u64()),
            (Some(true), Some(true), Some(101))
        );
        assert_eq!(
            (seen["hidden"].as_bool(), seen["wide"].as_bool()),
            (Some(true), Some(false)),
            "{width}"
        );
        assert_eq!(
            (seen["wrong"].to_string(), seen["requests"].to_string()),
            ("[]".into(), "[]".into())
        );
    }
}
