//! The worked example of `docs/add-a-strategy.md` compiles and trains, and its code on the page is
//! current.

#[path = "../docs/center.rs"]
mod center;

use std::sync::Arc;

use center::CenterConfig;
use dw::assign::{ImageBoxes, Progress, StrategyConfig};
use dw::geometry::{Grid, level_sizes};
use dw::model::Detector;
use dw::train::input::{Input, Pixels};
use dw::train::step::Step;
use dw_launch::World;
use tch::{Device, Kind, Tensor};

#[test]
fn the_page_shows_the_example() {
    let page = include_str!("../docs/add-a-strategy.md");
    let code = include_str!("../docs/center.rs");
    assert!(page.contains(code), "docs/add-a-strategy.md differs from docs/center.rs");
    let lines = code.lines().filter(|l| !l.trim().is_empty() && !l.trim().starts_with("//"));
    assert!(lines.count() <= 80);
}

#[test]
fn the_example_trains() {
    tch::manual_seed(4);
    let sets = ["model.refine=false".to_owned()];
    let config = dw::config::load("smoke", &sets).unwrap();
    let mut net = Detector::new(&config.model, 3, Kind::Float, Device::Cpu);
    let center = CenterConfig { share: 0.4 };
    center.check().unwrap();
    assert!(CenterConfig { share: 0.0 }.check().unwrap_err().contains("assign.share"));
    let strategy = center.build(&mut net.params, 3);
    strategy.attach(&mut net);
    let world = World::solo();
    let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo())).unwrap();
    let boxes = vec![[8.0, 8.0, 50.0, 60.0], [20.0, 20.0, 40.0, 44.0]];
    let truth = [ImageBoxes { boxes, labels: vec![1, 2], padded: None }];
    let targets = step.matcher().targets(&Grid::centers(&level_sizes(64, 64)), &truth);
    assert!(targets.points().positive.numel() > 4, "points near both centres");
    let images = Tensor::randn([1, 3, 64, 64], (Kind::Float, Device::Cpu));
    let mut losses = vec![];
    for _ in 0..20 {
        let images = Pixels::Normalised(&images);
        let input = Input { images, targets: &targets, at: Progress::default() };
        let done = step.run(&[input], 0.01, false, None, |_| ()).unwrap();
        losses.push(done.wait(&world).unwrap().loss.total());
    }
    assert!(losses[19] < 0.8 * losses[0], "{losses:?}");
}
