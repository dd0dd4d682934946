//! The report as a whole: what stands on the page, and that a page can be made of anything.

mod synthetic;

use weft_bench::report;

#[test]
fn the_page_and_the_picture_can_be_looked_at() {
    let made_up = synthetic::report(5, 1.0, 1);
    let folder = std::path::Path::new(env!("CARGO_TARGET_TMPDIR"));
    std::fs::write(folder.join("made-up-report.html"), report::html(&made_up)).unwrap();
    std::fs::write(folder.join("made-up-report.svg"), report::chief(&made_up, "weft").unwrap()).unwrap();
}
