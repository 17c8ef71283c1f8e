//! Starting weights, evaluation of weight files, and the networks of the built-in configurations.

mod support;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use dw::model::Detector;
use dw::model::weights::load;
use dw_weights::Weights;
use support::{
    Sandbox, assert_contains, assert_fails, assert_line_contains, bin, last_error, launch, output,
    run, run_failing, stderr,
};
use tch::{Device, Kind, Tensor};

/// A small file of `weights/tests/data`, written by torch.
fn data_file(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("weights/tests/data");
    folder.join(name).to_str().unwrap().to_owned()
}

/// Values of an f32 tensor in a weight file or checkpoint folder.
fn floats(path: &Path, name: &str) -> Vec<f32> {
    let w = Weights::open(path).unwrap();
    w.read(name)
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

/// The oldest checkpoint of a run.
fn checkpoint(sandbox: &Sandbox, work: &str) -> PathBuf {
    sandbox.checkpoints(work)[0].clone()
}

/// Settings of a run that saves its starting weights, because its only step changes nothing.
const UNCHANGED: [&str; 4] =
    ["train.max_steps=1", "eval.every_epochs=0", "train.lr=0", "train.weight_decay=0"];

#[test]
fn init_reads_an_mmdetection_checkpoint_and_reports_what_matched() {
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &UNCHANGED)).args(["--init", &data_file("smoke_part.pth")]);
    let log = stderr(&output(&mut c));
    assert_line_contains(&log, &["INFO", "smoke_part.pth", "2 tensors"]);
    let shapes = ["bbox_head.conv_centerness.weight", "[1, 32, 3, 3]", "[7]"];
    assert_line_contains(&log, &shapes);
    let folder = checkpoint(&sandbox, "w");
    assert_eq!(floats(&folder, "bbox_head.conv_cls.bias"), [0.25, -0.5, 0.75]);
    assert_eq!(floats(&folder, "bbox_head.conv_reg.bias"), [0.0, 1.0, 2.0, 3.0]);
}

/// A checkpoint folder, a work directory and a converted file give the same starting weights.
#[test]
fn init_reads_checkpoints_work_directories_and_converted_files() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "first", &["train.max_steps=3", "eval.every_epochs=0"]);
    let folder = checkpoint(&sandbox, "first");
    let converted = sandbox.path("converted.safetensors");
    run(Command::new(bin("dw-weights")).arg("convert").arg(&folder).arg(&converted));
    for (work, init) in
        [("a", folder.to_str().unwrap().to_owned()), ("b", sandbox.path("first")), ("c", converted)]
    {
        let mut c = launch(0, "dw-train");
        run(c.args(sandbox.train_args(work, &UNCHANGED)).args(["--init", &init]));
        let name = "neck.fpn_convs.4.conv.weight";
        assert_eq!(floats(&checkpoint(&sandbox, work), name), floats(&folder, name), "{init}");
    }
}

/// The state of a strategy is not a part of the network. Weights of a class are not used for
/// another one unnoticed.
#[test]
fn init_takes_the_network_alone_and_compares_class_names() {
    let (sandbox, prior) = (Sandbox::new(), "bbox_head.center_prior.mean");
    let learning = ["assign.kind=autoassign", "train.max_steps=3", "eval.every_epochs=0"];
    sandbox.train(0, "first", &learning);
    assert!(floats(&checkpoint(&sandbox, "first"), prior).iter().any(|v| *v != 0.0));
    let init = |work: &str| {
        let mut c = launch(0, "dw-train");
        c.args(sandbox.train_args(work, &UNCHANGED)).args(["--init", &sandbox.path("first")]);
        stderr(&output(&mut c))
    };
    let log = init("second");
    assert!(!log.contains("the file "), "{log}");
    assert!(floats(&checkpoint(&sandbox, "second"), prior).iter().all(|v| *v == 0.0));
    for split in ["train", "val"] {
        let file = sandbox.path(&format!("coco/annotations/instances_{split}2017.json"));
        let mut truth: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        truth["categories"][1]["name"] = "aardvark".into();
        std::fs::write(&file, truth.to_string()).unwrap();
    }
    run(Command::new(bin("dw-pack")).arg(sandbox.path("coco")));
    assert_line_contains(&init("third"), &["WARN", "other names", "`aardvark`"]);
}

#[test]
fn init_refuses_files_that_do_not_fit_or_are_damaged() {
    let sandbox = Sandbox::new();
    let refused = |file: &str, code: i32, keys: &[&str]| {
        let mut c = launch(0, "dw-train");
        c.args(sandbox.train_args("w", &UNCHANGED)).args(["--init", file]);
        assert_fails(&mut c, code, keys);
    };
    refused(&data_file("zip.pth"), 2, &["zip.pth", "0 tensors"]);
    refused("/no/such.pth", 2, &["/no/such.pth"]);
    let bomb = data_file("bomb.pth");
    let length = std::fs::metadata(&bomb).unwrap().len().to_string();
    refused(&bomb, 3, &["bomb.pth", "bytes", &length]);
    let cut = sandbox.path("cut.pth");
    let content = std::fs::read(data_file("smoke_part.pth")).unwrap();
    std::fs::write(&cut, &content[..content.len() / 2]).unwrap();
    refused(&cut, 3, &["cut.pth", "PyTorch", ".safetensors"]);
}

/// Starts a local HTTP server that answers every request with `body`; returns its address.
fn serve(body: Vec<u8>) -> String {
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", server.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in server.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]).unwrap();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                body.len()
            )
            .unwrap();
            stream.write_all(&body).unwrap();
        }
    });
    address
}

#[test]
fn imagenet_weights_come_from_the_cache_or_the_network() {
    let sandbox = Sandbox::new();
    let cache = sandbox.path("cache");
    let imagenet = |ranks: usize, work: &str, url: &str| {
        let mut c = launch(ranks, "dw-train");
        let network = ["model.init=imagenet", "model.norm=bn", "model.width=1"];
        c.args(sandbox.train_args(work, &[&UNCHANGED[..], &network].concat()));
        c.env("XDG_CACHE_HOME", &cache).env("DW_WEIGHTS_URL", url);
        c.env_remove("http_proxy").env_remove("HTTP_PROXY");
        c
    };
    let folder = cache.clone() + "/dw/weights";
    // Without a network: one error, with the file to fetch and the folder to put it into.
    let offline = "http://127.0.0.1:9";
    let url = format!("{offline}/resnet18-f37072fd.pth");
    let log = run_failing(&mut imagenet(2, "w", offline), 2);
    assert_contains(&log, &[&url, "hint:", &folder, "--init random"]);
    assert_eq!(log.matches("error: ").count(), 1, "{log}");
    // A file with another checksum is refused.
    let server = serve(b"another file".to_vec());
    assert_fails(&mut imagenet(2, "w", &server), 2, &["sha256", "f37072fd"]);
    // A file that is already in the cache is used. Its names have no prefix, as in torchvision's
    // files.
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(data_file("resnet18_part.pth"), folder + "/resnet18-f37072fd.pth").unwrap();
    let log = stderr(&output(&mut imagenet(0, "w", offline)));
    assert_line_contains(&log, &["INFO", "resnet18-f37072fd.pth", "1 tensor", "fc.bias"]);
    assert_eq!(floats(&checkpoint(&sandbox, "w"), "backbone.bn1.weight"), [3.0; 64]);
    let mut narrow = launch(0, "dw-train");
    narrow.args(sandbox.train_args("w2", &["model.init=imagenet"]));
    assert_fails(&mut narrow, 2, &["model.width", "hint:", "--init random"]);
}

/// A weight file with its configuration gives the same metrics as its checkpoint.
#[test]
fn a_weight_file_can_be_evaluated() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=6", "eval.every_epochs=0"]);
    let file = checkpoint(&sandbox, "w").join("model.safetensors");
    let shards = sandbox.shards();
    let eval = |args: &[&str]| {
        let mut c = launch(0, "dw-eval");
        c.args(args).args(["--device", "cpu", "--json"]);
        c
    };
    let of_run = run(&mut eval(&[&sandbox.path("w")]));
    let file = file.to_str().unwrap();
    assert_eq!(of_run, run(&mut eval(&[file, "--config", "smoke", "--data", &shards])));
    let mut both = launch(0, "dw-eval");
    both.args(["--compare", &sandbox.path("w"), file, "--config", "smoke", "--device", "cpu"]);
    assert_contains(&run(both.args(["--data", &shards])), &["B - A", "+0.0000"]);
    let mut without_config = eval(&[file, "--data", &shards]);
    assert_fails(&mut without_config, 2, &[file, "hint:", "--config dw_r50_fpn_1x"]);
    let mut other_network = eval(&[file, "--config", "demo", "--data", &shards]);
    assert_fails(&mut other_network, 2, &[file, "shape", "hint:", "--config"]);
    // The file has all tensors of the network, and others as well.
    let smaller = ["--config", "smoke", "--set", "model.refine=false", "--data", &shards];
    let keys = [file, "another network", "bbox_head.", "hint:", "--config"];
    assert_fails(&mut eval(&[&[file][..], &smaller].concat()), 2, &keys);
    let work = sandbox.path("w");
    for set in ["model.refine=false", "model.fpn_relu=false", "assign.kind=fcos"] {
        let key = set.split('=').next().unwrap();
        assert_fails(&mut eval(&[&work, "--set", set]), 2, &["--set", key, "checkpoint"]);
    }
    let mut missing = eval(&[&sandbox.path("epoch_13.pth"), "--config", "smoke"]);
    assert_fails(&mut missing, 2, &["epoch_13.pth", "no such file", "hint:"]);
    let mut config_of_run = eval(&[&work, "--config", "smoke"]);
    assert_fails(&mut config_of_run, 2, &["--config", "hint:", "--set"]);
    let strict = run(&mut eval(&[&work, "--set", "eval.score_threshold=0.999"]));
    assert_contains(&strict, &["\"AP\":0.0"]);
}

/// Built-in configuration, number of parameters (trained, all), and another text of the dry run.
/// The numbers of are sums over the state dicts of the golden cases.
const CONFIGURATIONS: [(&str, [&str; 2], &str); 11] = [
    ("dw_r50_fpn_1x", ["32090466", "32315810"], "215.1 GFLOPs"),
    ("dw_r50_fpn_worefine_1x", ["32072026", "32297370"], "214.7 GFLOPs"),
    ("dw_r50_fpn_mstrain_2x", ["32090466", "32315810"], "480..960"),
    ("dw_r50_fpn_dconv_c3-c5_mstrain_2x", ["33086199", "33311543"], "DCNv2 in C[3, 4, 5]"),
    ("dw_r101_fpn_1x", ["51082594", "51307938"], "12.00 epochs"),
    ("dw_r101_fpn_mstrain_2x", ["51082594", "51307938"], "24.00 epochs"),
    ("dw_r101_fpn_worefine_mstrain_2x", ["51064154", "51289498"], "refinement false"),
    ("dw_r101_fpn_dconv_c3-c5_mstrain_2x", ["53136322", "53361666"], "DCNv2"),
    ("dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x", ["53117882", "53343226"], "refinement false"),
    ("dw_x101_64x4d_fpn_mstrain_2x", ["89811298", "90214050"], "resnext101_64x4d"),
    ("dw_x101_64x4d_fpn_worefine_mstrain_2x", ["89792858", "90195610"], "refinement false"),
];

/// A dry run needs no data.
#[test]
fn dry_run_of_every_configuration_prints_its_parameters() {
    let empty = tempfile::tempdir().unwrap();
    for (name, [trained, all], value) in CONFIGURATIONS {
        let mut c = launch(0, "dw-train");
        c.args([name, "--dry-run", "--device", "cpu"]).current_dir(empty.path());
        let table = run(&mut c);
        assert_contains(&table, &[name, value, "GFLOPs"]);
        assert_line_contains(&table, &["parameters", trained, all]);
    }
}

/// The golden state dict lists every tensor of the reference. It has as many parameters as the
/// configuration of the same network.
#[test]
fn the_number_of_parameters_is_the_reference_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/data/detector/r50_refine/case.json");
    let case: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let buffer =
        |n: &str| n.contains("running_") || n.contains("num_batches") || n.contains("center_prior");
    let size = |t: &serde_json::Value| {
        t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>()
    };
    let state = case["state"].as_array().unwrap().iter();
    let all: u64 = state.filter(|t| !buffer(t["name"].as_str().unwrap())).map(size).sum();
    assert_eq!((case["config"].as_str().unwrap(), all), ("dw_r50_fpn_1x_coco", 32_315_810));
}

/// Deformable bottlenecks and ResNeXt train, save and resume bit for bit.
#[test]
fn other_backbones_train_and_resume() {
    let sandbox = Sandbox::with_images(4, 2);
    for backbone in ["resnet50", "resnext101_32x4d"] {
        let network = [
            format!("model.backbone={backbone}"),
            "model.width=0.125".into(),
            "model.dcn_stages=[3, 4, 5]".into(),
        ];
        let sets = |steps| {
            let mut all: Vec<&str> = network.iter().map(String::as_str).collect();
            all.extend(["model.dcn_last_conv=true", "eval.every_epochs=0", steps]);
            all
        };
        let (whole, parts) = (format!("whole-{backbone}"), format!("parts-{backbone}"));
        sandbox.train(0, &whole, &sets("train.max_steps=4"));
        sandbox.train(0, &parts, &sets("train.max_steps=2"));
        sandbox.train(0, &parts, &sets("train.max_steps=4"));
        assert_eq!(sandbox.losses(&whole), sandbox.losses(&parts), "{backbone}");
        let tensors = Weights::open(&checkpoint(&sandbox, &whole)).unwrap().tensors;
        let name = "backbone.layer2.0.conv2.conv_offset.weight";
        assert_eq!(tensors[name].shape[0], 27);
        assert!(
            floats(&checkpoint(&sandbox, &whole), name).iter().any(|v| *v != 0.0),
            "the offsets are trained"
        );
    }
    let mut c = launch(0, "dw-train");
    c.args(sandbox.train_args("w", &["model.dcn_stages=[3]"]));
    assert_fails(&mut c, 2, &["`model.dcn_stages`", "bottlenecks"]);
}

/// Weights of another network are an error if a frozen tensor would keep random values. Otherwise a
/// warning counts the tensors of each part.
#[test]
fn weights_that_fit_in_part_are_reported() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=1", "eval.every_epochs=0"]);
    let file = checkpoint(&sandbox, "w").join("model.safetensors");
    let train = |work: &str, sets: &[&str], file: &Path| {
        let sets = [&["train.max_steps=1", "eval.every_epochs=0"][..], sets].concat();
        let mut c = launch(0, "dw-train");
        c.args(sandbox.train_args(work, &sets)).arg("--init").arg(file);
        c
    };
    let frozen = ["model.backbone=resnet50", "model.frozen_stages=1"];
    let log = run_failing(&mut train("a", &frozen, &file), 2);
    let keys = ["model.safetensors", "`backbone.", "backbone ", "hint:", "model.frozen_stages=-1"];
    assert_contains(last_error(&log), &keys);
    let log = stderr(&output(&mut train("b", &["model.backbone=resnet50"], &file)));
    let keys = ["WARN", "model.safetensors", "backbone ", "neck ", "bbox_head "];
    assert_line_contains(&log, &keys);
    // A weight that is not a number.
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let bad = sandbox.path("nan.safetensors");
    std::fs::write(&bad, bytes).unwrap();
    assert_fails(&mut train("c", &[], Path::new(&bad)), 3, &["nan.safetensors", "finite"]);
    assert!(!Path::new(&sandbox.path("c/config.toml")).exists(), "checked before the first write");
}

/// torchvision's ResNet-50 loads the `backbone.` part of a checkpoint and computes the same feature
/// maps.
#[test]
#[ignore = "requires DW_TORCHVISION, a Python with torch, torchvision and safetensors (make soak)"]
fn torchvision_reads_the_backbone_of_a_checkpoint() {
    let python = std::env::var("DW_TORCHVISION").expect("DW_TORCHVISION is set");
    let sandbox = Sandbox::new();
    let network = ["model.backbone=resnet50", "model.width=1", "model.norm=bn"];
    let run_of = ["model.frozen_stages=-1", "train.max_steps=5", "eval.every_epochs=0"];
    let sets = [network, run_of].concat();
    sandbox.train(0, "w", &sets);
    let folder = checkpoint(&sandbox, "w");
    let sets: Vec<String> = sets.iter().map(|&s| s.to_owned()).collect();
    let config = dw::config::load("smoke", &sets).unwrap();
    let mut detector = Detector::new(&config.model, 3, Kind::Float, Device::Cpu);
    let report = load(&Weights::open(&folder).unwrap(), &mut detector.params, |_| true).unwrap();
    assert!(report.complete(), "{report}");
    let images = Tensor::randn([2, 3, 96, 160], (Kind::Float, Device::Cpu));
    let (maps, _) = tch::no_grad(|| detector.features(&images, false));
    let maps: Vec<Tensor> = maps.iter().map(Tensor::contiguous).collect();
    let names = ["layer1", "layer2", "layer3", "layer4"];
    let all: Vec<_> = names.into_iter().zip(&maps).chain([("images", &images)]).collect();
    let file = sandbox.path("maps.safetensors");
    Tensor::write_safetensors(&all, &file).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/torchvision/backbone.py");
    let model = folder.join("model.safetensors");
    print!("{}", run(Command::new(python).arg(script).arg(model).arg(file)));
}
