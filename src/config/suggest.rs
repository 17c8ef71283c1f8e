//! Hints for unknown names: the nearest built-in configuration; the nearest valid key, or the key
//! that corresponds to another trainer's name.

use super::{BUILT_IN, keys};

/// Names in other trainers (mmdetection, Detectron2, torchvision's references, YOLO), in lower case
/// with underscores, and the corresponding key here.
const ELSEWHERE: &[(&[&str], &str)] = &[
    (
        &[
            "batch_size",
            "batch",
            "samples_per_gpu",
            "imgs_per_gpu",
            "ims_per_batch",
            "images_per_gpu",
        ],
        "train.images_per_rank",
    ),
    (&["max_epochs", "num_epochs", "total_epochs", "n_epochs"], "train.epochs"),
    (&["learning_rate", "base_lr", "lr0", "initial_lr"], "train.lr"),
    (&["milestones", "step", "steps", "lr_milestones"], "train.lr_steps"),
    (&["gamma", "lr_gamma"], "train.lr_decay"),
    (&["warmup_iters", "warmup_iterations", "warmup"], "train.warmup_steps"),
    (&["max_iters", "max_iter", "num_steps", "total_steps"], "train.max_steps"),
    (&["wd"], "train.weight_decay"),
    (
        &["grad_clip", "clip_grad", "max_norm", "gradient_clip_val", "clip_gradients"],
        "train.clip_norm",
    ),
    (&["amp", "autocast", "fp16", "bf16", "half", "mixed_precision", "dtype"], "train.precision"),
    (&["random_seed"], "train.seed"),
    (
        &["accumulation_steps", "gradient_accumulation_steps", "accumulate_grad_batches"],
        "train.accumulate",
    ),
    (&["num_workers", "workers_per_gpu", "n_workers"], "data.workers"),
    (
        &["imgsz", "img_size", "image_size", "img_scale", "input_size", "min_size"],
        "data.short_side",
    ),
    (&["max_size"], "data.long_side"),
    (&["data_root", "dataset", "data_dir", "data_path", "root"], "data.shards"),
    (&["flip_prob", "flip_ratio", "fliplr"], "data.flip"),
    (&["pretrained", "weights", "load_from", "init_cfg"], "model.init"),
    (&["depth", "arch"], "model.backbone"),
    (&["norm_eval"], "model.norm"),
    (&["score_thr", "score_thresh", "conf", "conf_thres"], "eval.score_threshold"),
    (&["iou_thr", "iou_thres", "iou_threshold", "nms_thresh"], "eval.nms_iou"),
    (&["max_per_img", "max_det", "max_dets", "detections_per_img"], "eval.per_image"),
    (&["nms_pre", "topk_candidates"], "eval.per_level"),
    (&["eval_interval", "val_interval"], "eval.every_epochs"),
    (
        &["save_interval", "save_period", "checkpoint_interval", "checkpoint_period"],
        "checkpoint.every_steps",
    ),
    (&["max_keep_ckpts", "save_total_limit"], "checkpoint.keep"),
];

/// Names of other trainers for something that is not a key here, and where it is set instead.
const NO_KEY: &[(&[&str], &str)] = &[
    (
        &["num_classes", "classes", "nc", "class_names"],
        "the classes come from the packed data (`dw-pack info OUT`)",
    ),
    (&["optimizer", "optim"], "the optimiser is SGD with train.momentum and train.weight_decay"),
    (
        &["gpus", "num_gpus", "gpu_ids", "devices", "world_size"],
        "the launcher decides: mpirun -n N, or dw-launch -n N",
    ),
    (&["device"], "use the option --device"),
    (&["work_dir", "output_dir", "save_dir", "project"], "use the option --work-dir"),
    (&["resume", "resume_from"], "use the option --resume"),
];

/// Minimum similarity (1: equal) at which a key is considered a typing error.
const NEAR: f64 = 0.75;

/// The hint for an unknown key, such as `train.learning_rate`. `beside`: the valid keys of its
/// table (fewer than [`keys`] has for a section whose keys depend on its kind).
pub(super) fn hint(key: &str, beside: &[String]) -> String {
    let section = key.split('.').next().unwrap_or_default();
    let in_section = |k: &str| k.split('.').next() == Some(section);
    let valid: Vec<String> = keys()
        .into_iter()
        .filter(|k| !in_section(k) || beside.is_empty() || beside.contains(k))
        .collect();
    let name = last(key).to_lowercase().replace('-', "_");
    let in_table = |table: &[(&[&str], &'static str)]| {
        table.iter().find(|(names, _)| names.contains(&&*name)).map(|f| f.1)
    };
    if let Some(text) = in_table(NO_KEY) {
        return text.to_owned();
    }
    if let Some(ours) = in_table(ELSEWHERE) {
        // `gamma` means something else in [assign] than in [train].
        let alike = |k: &&String| {
            let own = last(k);
            in_section(k)
                && (own.starts_with(&name)
                    || own.ends_with(&format!("_{name}"))
                    || name.starts_with(&format!("{own}_")))
        };
        return match valid.iter().find(alike).filter(|_| !in_section(ours)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!("the key here is `{ours}`"),
        };
    }
    if keys().iter().any(|k| k == key) {
        return "it is a key of another `assign.kind`".to_owned();
    }
    if let Some(near) = nearest(key, &valid) {
        return format!("did you mean `{near}`?");
    }
    let inside: Vec<String> = valid.into_iter().filter(|k| in_section(k)).collect();
    if inside.is_empty() {
        "the sections are model, data, assign, train, eval and checkpoint".to_owned()
    } else {
        format!("the keys there are {}", inside.join(", "))
    }
}

/// The built-in configuration with the most similar name.
pub(super) fn nearest_name(name: &str) -> Option<&'static str> {
    let alike = |known: &str| strsim::normalized_damerau_levenshtein(name, known);
    let all = BUILT_IN.iter().map(|(known, _)| (alike(known), *known));
    all.filter(|(score, _)| *score >= NEAR).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

/// The last part of a dotted key.
fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or_default()
}

/// The most similar valid key, by its whole path or by its last part (`data.lr` for `train.lr`).
fn nearest(key: &str, valid: &[String]) -> Option<String> {
    let alike = strsim::normalized_damerau_levenshtein;
    let section = |k: &str| k.split('.').next().unwrap_or_default().to_owned();
    let score = |k: &str| {
        // The bonus lets a slightly misspelt name in the same section win over an equal one
        // elsewhere.
        let bonus = if section(k) == section(key) { 0.05 } else { 0.0 };
        alike(last(k), last(key))
            + if alike(&section(k), &section(key)) < NEAR { 0.0 } else { bonus + 0.01 }
    };
    let all = valid.iter().map(|k| (score(k), k));
    all.filter(|(score, _)| *score >= NEAR)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, k)| k.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_configuration_is_found() {
        assert_eq!(nearest_name("dw_r50_fpn_x1"), Some("dw_r50_fpn_1x"));
        assert_eq!(nearest_name("dmeo"), Some("demo"));
        assert_eq!(nearest_name("faster_rcnn"), None);
    }

    #[test]
    fn similar_keys_and_names_of_other_trainers_get_hints() {
        for (typed, expected) in [
            ("train.epoch", "`train.epochs`"),
            ("train.warmup_step", "`train.warmup_steps`"),
            ("data.lr", "`train.lr`"),
            ("modle.width", "`model.width`"),
            ("train.batch_size", "`train.images_per_rank`"),
            ("train.amp", "`train.precision`"),
            ("model.num_classes", "dw-pack info"),
            ("train.learning_rate", "`train.lr`"),
            ("train.accumulation_steps", "`train.accumulate`"),
            ("assign.gamma", "`assign.gamma1`"),
            ("eval.batch_size", "`eval.batch`"),
            ("eval.flip_ratio", "`eval.flip`"),
            ("checkpoint.steps", "`checkpoint.every_steps`"),
            ("train.fliplr", "`data.flip`"),
            ("model.norm_eval", "`model.norm`"),
            ("train.autocast", "`train.precision`"),
        ] {
            assert!(hint(typed, &[]).contains(expected), "{typed}: {}", hint(typed, &[]));
        }
        let far = hint("train.zebra", &[]);
        assert!(!far.contains("did you mean") && far.contains("train.warmup_ratio"), "{far}");
        assert!(hint("zebra.x", &[]).contains("sections"), "{}", hint("zebra.x", &[]));
    }
}
