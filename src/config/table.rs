//! The table of resolved settings that a run prints at its start and stores in its work directory.

use super::Config;
use crate::data::DataConfig;
use crate::model::{Detector, ModelConfig};
use crate::train::Plan;

/// The settings of a run as a human-readable table.
pub fn settings(config: &Config, plan: &Plan, detector: &Detector) -> String {
    let mut rows = network(config, plan, detector);
    rows.extend(data(config, plan));
    rows.extend(execution(config, plan));
    rows.extend(optimisation(config, plan));
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    for (name, value) in rows {
        table.add_row([name.to_owned(), value]);
    }
    table.to_string()
}

type Rows = Vec<(&'static str, String)>;

fn network(config: &Config, plan: &Plan, detector: &Detector) -> Rows {
    let m = &config.model;
    let (trained, all) = detector.params.counts();
    let (height, width) =
        (config.data.short_side.next_multiple_of(32), config.data.long_side.next_multiple_of(32));
    let cost = detector.cost(height.into(), width.into()) as f64 / 1e9;
    let network = format!(
        "{} x {} + FPN + {:?} head, {} channels, norm {:?}, refinement {}, {}",
        m.backbone.name(),
        m.width,
        m.head,
        m.channels,
        m.norm,
        m.refine,
        deformable(m)
    );
    let cost = format!(
        "{cost:.1} GFLOPs (multiply-adds of the convolutions) for one image of {height} x {width}"
    );
    vec![
        ("configuration", plan.inputs.name.clone()),
        ("network", network),
        ("parameters", format!("{trained} trained of {all}")),
        ("cost", cost),
        ("start", format!("{}, {} frozen stages", m.init, m.frozen_stages.max(0))),
    ]
}

fn deformable(m: &ModelConfig) -> String {
    match (&m.dcn_stages[..], m.dcn_last_conv) {
        ([], false) => "nothing deformable".to_owned(),
        ([], true) => "DCNv2 in the head".to_owned(),
        (stages, head) => {
            format!("DCNv2 in C{stages:?}{}", if head { " and the head" } else { "" })
        }
    }
}

fn data(config: &Config, plan: &Plan) -> Rows {
    let (d, s) = (&config.data, &plan.inputs);
    let splits = format!(
        "{}: {} ({} images), {} ({} images)",
        d.shards.display(),
        d.train_split,
        s.train_images,
        d.val_split,
        s.val_images
    );
    let input = format!("short side {}, long side <= {}, flip {}", scales(d), d.long_side, d.flip);
    vec![
        ("data", splits),
        ("classes", s.classes.to_string()),
        ("input", input),
        ("assignment", config.assign.summary()),
    ]
}

/// The short sides that training images are resized to.
fn scales(d: &DataConfig) -> String {
    match d.multi_scale[..] {
        [low, high] => format!("{low}..{high}"),
        _ => d.short_side.to_string(),
    }
}

fn execution(config: &Config, plan: &Plan) -> Rows {
    let (t, p, s) = (&config.train, plan.prefetch, &plan.inputs);
    let ranks = format!(
        "{} on {:?}, {} threads each, collectives: {}",
        plan.world_size, s.device, s.threads, plan.collectives
    );
    let deterministic = if t.deterministic { ", deterministic algorithms" } else { "" };
    let prefetch = format!(
        "{} batches of at most {} MiB{}; {} of {} threads can work at once",
        p.batches,
        p.batch_mib,
        if s.device.is_cuda() { " of page-locked memory" } else { "" },
        plan.workers.min(p.batches),
        plan.workers
    );
    vec![
        ("ranks", ranks),
        ("precision", format!("{}{deterministic}", t.precision.name())),
        ("prefetch", prefetch),
    ]
}

fn optimisation(config: &Config, plan: &Plan) -> Rows {
    let (t, batch, ranks) = (&config.train, plan.global_batch(), plan.world_size);
    let passes = match plan.parts {
        1 => String::new(),
        n => format!(" x {n} passes"),
    };
    let images = plan.images_per_pass();
    let lr = format!(
        "{} ({} at {} images, scaling {:?}), x{} after epochs {:?}, warm-up {} steps",
        plan.schedule.lr, t.lr, t.base_batch, t.lr_scaling, t.lr_decay, t.lr_steps, t.warmup_steps
    );
    let schedule = format!(
        "{} steps = {:.2} epochs of {} steps",
        plan.total_steps,
        plan.total_steps as f64 / plan.steps_per_epoch as f64,
        plan.steps_per_epoch
    );
    vec![
        ("global batch", format!("{batch} = {images} images x {ranks} ranks{passes}")),
        ("learning rate", lr),
        ("schedule", schedule),
        ("seed", t.seed.to_string()),
    ]
}
