//! Properties of every label-assignment strategy, on its own head, in f64 unless stated otherwise.

use dw::assign::figures::bags::BagWeights;
use dw::assign::{AssignConfig, ImageBoxes, Progress, Strategy};
use dw::config::Config;
use dw::geometry::{Grid, level_sizes};
use dw::loss::{Loss, Reduced};
use dw::model::{Detector, Outputs};
use dw::train::step::loss_of;
use dw_launch::World;
use tch::{Device, Kind, Tensor};

/// Every strategy with the settings of its head. `tal` starts in its second phase.
const STRATEGIES: [&[&str]; 23] = [
    &["assign.kind=dw", "model.head_norm=none", "model.fpn_extra=on_input", "model.refine=false"],
    &["assign.kind=vfl", "model.head=vfnet", "model.refine=false", "model.quality_tower=none"],
    &["assign.kind=dw", "model.head=tood", "model.refine=false", "model.quality_tower=none"],
    &[
        "assign.kind=tal",
        "assign.atss_epochs=0",
        "model.head=tood",
        "model.refine=false",
        "model.quality_tower=none",
    ],
    &["assign.kind=dw"],
    &["assign.kind=dw", "assign.formula=paper", "model.refine=false"],
    &["assign.kind=fcos", "model.refine=false"],
    &["assign.kind=atss", "model.refine=false", "model.distances=deltas"],
    &[
        "assign.kind=gfl",
        "model.refine=false",
        "model.distances=distribution",
        "model.quality_tower=none",
    ],
    &[
        "assign.kind=vfl",
        "model.refine=false",
        "model.distances=deltas",
        "model.quality_tower=none",
    ],
    &[
        "assign.kind=tal",
        "assign.atss_epochs=0",
        "model.refine=false",
        "model.distances=deltas",
        "model.quality_tower=none",
    ],
    &["assign.kind=autoassign", "model.refine=false"],
    &["assign.kind=autoassign", "assign.form=detach", "model.refine=false"],
    &["assign.kind=autoassign", "assign.form=loss_weight", "model.refine=false"],
    &["assign.kind=autoassign", "assign.form=loss_weight_gradient", "model.refine=false"],
    &["assign.kind=paa", "model.refine=false", "model.distances=deltas"],
    &["assign.kind=ota", "model.refine=false"],
    &["assign.kind=simota", "model.refine=false"],
    &["assign.kind=weighting", "model.refine=false"],
    &["assign.kind=weighting", "assign.function=vfl", "model.refine=false"],
    &["assign.kind=weighting", "assign.function=tood", "assign.norm=native", "model.refine=false"],
    &["assign.kind=weighting", "assign.function=musu", "model.refine=false"],
    &[
        "assign.kind=gfl",
        "assign.assignment=fcos",
        "model.refine=false",
        "model.distances=distribution",
        "model.quality_tower=distribution",
        "model.tower_bias=false",
    ],
];

/// A strategy with a network of 3 classes, and square images of `side` pixels.
struct Fixture {
    side: i64,
    net: Detector,
    strategy: Strategy,
}

impl Fixture {
    fn new(settings: &[&str], side: i64) -> Self {
        Self::of_kind(settings, side, Kind::Double)
    }

    fn of_kind(settings: &[&str], side: i64, kind: Kind) -> Self {
        tch::manual_seed(3);
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let config: Config = dw::config::load("smoke", &settings).unwrap();
        let mut net = Detector::new(&config.model, 3, kind, Device::Cpu);
        let strategy = config.assign.build(&mut net.params, 3);
        strategy.attach(&mut net);
        // The last norm of a residual branch starts at 0, which stops gradients into the branch.
        for e in net.params.entries.iter_mut().filter(|e| e.trainable) {
            let noise = e.tensor.randn_like() * 0.02;
            tch::no_grad(|| drop(e.tensor.g_add_(&noise)));
            if e.name == "bbox_head.conv_reg.bias" && config.model.refine {
                // The initial boxes, 8 strides wide, extend beyond the map of the last level, where
                // refinement would sample zeros.
                tch::no_grad(|| drop(e.tensor.fill_(1.0)));
            }
        }
        Self { side, net, strategy }
    }

    fn outputs(&self) -> Outputs {
        let shape = [2, 3, self.side, self.side];
        self.net.forward(&Tensor::randn(shape, (Kind::Double, Device::Cpu)), true)
    }

    /// The loss of two images, after a backward pass.
    fn loss(&self, outputs: &Outputs, truth: &[ImageBoxes; 2]) -> Loss {
        let reduced = self.forward(outputs, truth);
        reduced.local.backward();
        reduced.read().unwrap()
    }

    fn forward(&self, outputs: &Outputs, truth: &[ImageBoxes; 2]) -> Reduced {
        let grid = Grid {
            sizes: level_sizes(self.side, self.side).to_vec(),
            offset: self.strategy.matcher.offset(),
        };
        let kind = outputs.cls[0].kind();
        let targets = self.strategy.matcher.targets(&grid, truth).to(kind, Device::Cpu);
        let at = Progress::default();
        let (criterion, world) = (&*self.strategy.criterion, World::solo());
        loss_of(criterion, outputs, &targets, &at, &mut (), (false, &world)).unwrap()
    }
}

fn image(boxes: &[[f32; 4]]) -> ImageBoxes {
    ImageBoxes { boxes: boxes.to_vec(), labels: vec![1; boxes.len()], padded: None }
}

#[test]
fn any_boxes_give_a_finite_loss_and_gradients() {
    let many: Vec<[f32; 4]> = (0..300u16)
        .map(|i| {
            let (x, y) = (f32::from(i % 20) * 24.0, f32::from(i / 20) * 30.0);
            [x, y, x + 17.0 + f32::from(i % 7) * 20.0, y + 9.0 + f32::from(i % 11) * 15.0]
        })
        .collect();
    let overlapping = [[40.0, 40.0, 200.0, 220.0], [50.0, 45.0, 210.0, 200.0]];
    let outside = [[-100.0, -50.0, 60.0, 70.0], [600.0, 600.0, 700.0, 650.0]];
    for settings in STRATEGIES {
        let fixture = Fixture::new(settings, 256);
        for (what, boxes) in [
            ("none", &[][..]),
            ("one", &overlapping[..1]),
            ("two of one class", &overlapping),
            ("the same twice", &[overlapping[0]; 2]),
            ("outside", &outside),
            ("300", &many),
        ] {
            let loss = fixture.loss(&fixture.outputs(), &[image(boxes), image(&[])]);
            assert!(
                loss.total().is_finite() && loss.total() > 0.0,
                "{settings:?}, {what}: {loss:?}"
            );
            // A box may have no positive point, but without boxes there is no positive point.
            assert!(loss.without_positive() || !boxes.is_empty(), "{settings:?}, {what}");
            for e in fixture.net.params.entries.iter().filter(|e| e.trainable) {
                let grad = e.tensor.grad();
                let finite = grad.defined() && grad.isfinite().all().int64_value(&[]) == 1;
                assert!(finite, "{settings:?}, {what}: gradient of {}", e.name);
            }
        }
    }
}

/// Boxes of many sizes have positive points on every level.
#[test]
fn a_gradient_reaches_every_trainable_parameter() {
    let boxes: Vec<[f32; 4]> = [24.0, 48.0, 90.0, 180.0, 330.0, 500.0]
        .iter()
        .flat_map(|side| {
            [[4.0, 6.0, 4.0 + side, 6.0 + side], [200.0, 190.0, 200.0 + side, 190.0 + side]]
        })
        .map(|b| b.map(|v: f32| v.min(511.0)))
        // FCOS trains the last level on distances above 512 pixels.
        .chain([[-300.0, -300.0, 900.0, 900.0]])
        .collect();
    for settings in STRATEGIES {
        let fixture = Fixture::new(settings, 512);
        let _ = fixture.loss(&fixture.outputs(), &[image(&boxes), image(&boxes[..3])]);
        for e in fixture.net.params.entries.iter().filter(|e| e.trainable) {
            let norm = e.tensor.grad().norm().double_value(&[]);
            assert!(norm > 0.0, "{settings:?}: no gradient in {}", e.name);
        }
    }
}

/// NaN or infinity anywhere in the predictions makes the loss NaN or infinite, and nothing aborts.
#[test]
fn predictions_that_are_not_finite_are_found() {
    for settings in STRATEGIES {
        let fixture = Fixture::new(settings, 256);
        let truth = [image(&[[40.0, 40.0, 200.0, 220.0]]), image(&[])];
        let outputs = tch::no_grad(|| fixture.outputs());
        let Outputs { cls, distances, quality, first, bins, .. } = &outputs;
        for levels in [cls, distances, quality, first, bins] {
            let [Some(first_level), Some(last)] = [levels.first(), levels.get(4)] else { continue };
            let cell =
                |level: &Tensor, image: i64, at: i64| level.get(image).get(0).get(at).get(at);
            let places = [
                // The last cell of the image without boxes, in the smallest level.
                ("a cell outside", cell(last, 1, 1)),
                ("a cell in the box", cell(first_level, 0, 15)),
                ("all cells of a level", first_level.shallow_clone()),
                ("all cells of the last level", last.shallow_clone()),
            ];
            for (place, cells) in places {
                let original = cells.copy();
                for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
                    drop(cells.shallow_clone().fill_(value));
                    let loss = tch::no_grad(|| fixture.forward(&outputs, &truth).read().unwrap());
                    let finite = loss.total().is_finite();
                    assert!(!finite, "{settings:?}, {place}, {value}: {loss:?}");
                }
                cells.shallow_clone().copy_(&original);
            }
        }
    }
}

/// `eval.bag_images` is accepted for exactly those strategies whose weights can be read.
#[test]
fn the_weights_of_bags_can_be_read_where_the_configuration_says_so() {
    for settings in STRATEGIES {
        let fixture = Fixture::new(settings, 256);
        let images = Tensor::randn([1, 3, 256, 256], (Kind::Double, Device::Cpu));
        let predicted = tch::no_grad(|| fixture.net.forward(&images, false)).flatten();
        let truth = image(&[[40.0, 40.0, 200.0, 220.0]]);
        let read = BagWeights::new(&fixture.strategy, &predicted, &truth);
        let more = [settings, &["eval.bag_images=1"]].concat();
        let more: Vec<String> = more.iter().map(ToString::to_string).collect();
        let accepted = dw::config::load("smoke", &more);
        assert_eq!(read.is_ok(), accepted.is_ok(), "{settings:?}: {:?}", accepted.err());
    }
}

#[test]
fn every_strategy_is_in_the_list() {
    for config in AssignConfig::all() {
        let kind = toml::Table::try_from(&config).unwrap()["kind"].to_string();
        let kind = format!("assign.kind={}", kind.trim_matches('"'));
        assert!(STRATEGIES.iter().any(|s| s[0] == kind), "{kind}");
    }
}

/// Strategies whose positive points depend on the predictions, which differ in bf16.
const DYNAMIC: [&str; 4] =
    ["assign.kind=tal", "assign.kind=paa", "assign.kind=ota", "assign.kind=simota"];

/// One forward pass with the same weights, images and targets.
#[test]
fn the_loss_in_bf16_is_that_in_f32_within_two_percent() {
    let boxes = [[20.0, 30.0, 120.0, 140.0], [90.0, 60.0, 230.0, 240.0], [8.0, 150.0, 60.0, 190.0]];
    for settings in STRATEGIES.iter().filter(|s| !DYNAMIC.contains(&s[0])) {
        let mut fixture = Fixture::of_kind(settings, 256, Kind::Float);
        let images = Tensor::randn([2, 3, 256, 256], (Kind::Float, Device::Cpu));
        let mut loss = |activations| {
            fixture.net.activations = activations;
            let outputs = tch::no_grad(|| fixture.net.forward(&images, true));
            let truth = [image(&boxes), image(&boxes[..1])];
            tch::no_grad(|| fixture.forward(&outputs, &truth).read().unwrap())
        };
        let (f32, bf16) = (loss(Kind::Float), loss(Kind::BFloat16));
        assert_ne!(f32.total(), bf16.total(), "{settings:?}: bf16 is not f32");
        let off = (f32.total() - bf16.total()).abs();
        assert!(off < 0.02 * f32.total(), "{settings:?}: {f32:?} in f32, {bf16:?} in bf16");
    }
}
