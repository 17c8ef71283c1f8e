//! Starting and evaluating from weight files, configurations and their networks.

mod support;

use std::io::{Read, Write};
use std::path::Path;
use std::process::Command;

use dw_weights::Weights;
use support::{Sandbox, assert_contains, bin, files_in, launch, run, run_failing, stderr};

/// A small file of `weights/tests/data`, as torch writes it.
fn fixture(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("weights/tests/data")
        .join(name)
        .to_str()
        .unwrap()
        .to_owned()
}

fn floats(path: &Path, name: &str) -> Vec<f32> {
    let w = Weights::open(path).unwrap();
    w.read(name)
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
        .collect()
}

fn checkpoint(sandbox: &Sandbox, work: &str) -> std::path::PathBuf {
    sandbox.checkpoints(work)[0].clone()
}

/// Settings of a run that saves what it started from: no step changes anything.
const STILL: [&str; 4] =
    ["train.max_steps=1", "eval.every_epochs=0", "train.lr=0", "train.weight_decay=0"];

#[test]
fn init_reads_an_mmdetection_checkpoint_and_says_what_matched() {
    let sandbox = Sandbox::new();
    let mut c = launch(0, "dw-train");
    let out = c
        .args(sandbox.train_args("w", &STILL))
        .args(["--init", &fixture("smoke_part.pth")])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", stderr(&out));
    assert_contains(
        &stderr(&out),
        &[
            "smoke_part.pth (PyTorch, zip): 2 tensors matched",
            "missing in the file",
            "1 of another shape: bbox_head.conv_centerness.weight (network [1, 32, 3, 3], file [7])",
        ],
    );
    let folder = checkpoint(&sandbox, "w");
    assert_eq!(floats(&folder, "bbox_head.conv_cls.bias"), [0.25, -0.5, 0.75]);
    assert_eq!(floats(&folder, "bbox_head.conv_reg.bias"), [0.0, 1.0, 2.0, 3.0]);
}

/// A checkpoint folder, a work directory and a converted file are the same start.
#[test]
fn init_from_ones_own_checkpoint() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "first", &["train.max_steps=3", "eval.every_epochs=0"]);
    let folder = checkpoint(&sandbox, "first");
    let converted = sandbox.path("converted.safetensors");
    run(Command::new(bin("dw-weights")).arg("convert").arg(&folder).arg(&converted));
    for (work, init) in
        [("a", folder.to_str().unwrap().to_owned()), ("b", sandbox.path("first")), ("c", converted)]
    {
        let mut c = launch(0, "dw-train");
        run(c.args(sandbox.train_args(work, &STILL)).args(["--init", &init]));
        let name = "neck.fpn_convs.4.conv.weight";
        assert_eq!(floats(&checkpoint(&sandbox, work), name), floats(&folder, name), "{init}");
    }
}

#[test]
fn files_that_do_not_fit_or_are_damaged_are_refused() {
    let sandbox = Sandbox::new();
    let init = |file: &str, code: i32| {
        let mut c = launch(0, "dw-train");
        c.args(sandbox.train_args("w", &STILL)).args(["--init", file]);
        run_failing(&mut c, code)
    };
    assert_contains(
        &init(&fixture("zip.pth"), 2),
        &["zip.pth", "none of its tensors fits the network", "0 tensors matched"],
    );
    assert_contains(&init("/no/such.pth", 2), &["cannot open the weights /no/such.pth"]);
    assert_contains(&init(&fixture("bomb.pth"), 3), &["bomb.pth", "claim"]);
    let cut = sandbox.path("cut.pth");
    let whole = std::fs::read(fixture("smoke_part.pth")).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    assert_contains(&init(&cut, 3), &["cut.pth", "not a whole PyTorch or .safetensors file"]);
}

/// Serves `body` to every request on this machine; the address.
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
fn imagenet_weights_come_from_the_cache_or_the_network_or_say_what_is_missing() {
    let sandbox = Sandbox::new();
    let cache = sandbox.path("cache");
    let imagenet = |ranks: usize, work: &str, url: &str| {
        let mut c = launch(ranks, "dw-train");
        c.args(sandbox.train_args(work, &STILL)).args([
            "--set",
            "model.init=imagenet",
            "--set",
            "model.norm=bn",
            "--set",
            "model.width=1",
        ]);
        c.env("XDG_CACHE_HOME", &cache)
            .env("DW_WEIGHTS_URL", url)
            .env_remove("http_proxy")
            .env_remove("HTTP_PROXY");
        c
    };
    // Without a network: which file goes where, told once.
    let text = run_failing(&mut imagenet(2, "w", "http://127.0.0.1:9"), 2);
    assert_contains(
        &text,
        &[
            "cannot fetch http://127.0.0.1:9/resnet18-f37072fd.pth",
            &(cache.clone() + "/dw/weights"),
            "--init random",
        ],
    );
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    // Something else under that name is not taken.
    assert_contains(
        &run_failing(&mut imagenet(2, "w", &serve(b"another file".to_vec())), 2),
        &["not the pinned file", "f37072fd"],
    );
    // A file that the user put there, named like torchvision's, whose tensors have no prefix.
    let folder = cache.clone() + "/dw/weights";
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(fixture("resnet18_part.pth"), folder + "/resnet18-f37072fd.pth").unwrap();
    let out = imagenet(0, "w", "http://127.0.0.1:9").output().unwrap();
    assert_contains(
        &stderr(&out),
        &["resnet18-f37072fd.pth (PyTorch, before 1.6): 1 tensors matched", "1 not used: fc.bias"],
    );
    assert_eq!(floats(&checkpoint(&sandbox, "w"), "backbone.bn1.weight"), [3.0; 64]);
    let mut narrow = launch(0, "dw-train");
    narrow.args(sandbox.train_args("w2", &["model.init=imagenet"]));
    assert_contains(&run_failing(&mut narrow, 2), &["model.width = 1", "--init random"]);
}

/// A weight file with its configuration evaluates like the checkpoint that it came from.
#[test]
fn eval_of_a_weight_file() {
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
    assert_contains(
        &run_failing(&mut eval(&[file, "--data", &shards]), 2),
        &["a weight file does not say which network", "--config dw_r50_fpn_1x"],
    );
    assert_contains(
        &run_failing(&mut eval(&[file, "--config", "demo", "--data", &shards]), 2),
        &["another shape", "check --config"],
    );
    assert_contains(
        &run_failing(&mut eval(&[&sandbox.path("w"), "--config", "smoke"]), 2),
        &["brings its own configuration", "--set"],
    );
    let strict = run(&mut eval(&[&sandbox.path("w"), "--set", "eval.score_threshold=0.999"]));
    assert!(strict.contains("\"AP\":0.0"), "{strict}");
}

/// Every built-in configuration resolves, also before there are data, with the parameters of its network.
#[test]
fn dry_run_of_every_configuration() {
    let empty = tempfile::tempdir().unwrap();
    // Trained and all parameters; those of are the sums over the golden cases' state dicts.
    let expected = [
        ("dw_r50_fpn_1x", "32090466 trained of 32315810", "215.1 GFLOPs"),
        ("dw_r50_fpn_worefine_1x", "32072026 trained of 32297370", "214.7 GFLOPs"),
        ("dw_r50_fpn_mstrain_2x", "32090466 trained of 32315810", "480..960"),
        (
            "dw_r50_fpn_dconv_c3-c5_mstrain_2x",
            "33086199 trained of 33311543",
            "DCNv2 in C[3, 4, 5] and the head",
        ),
        ("dw_r101_fpn_1x", "51082594 trained of 51307938", "12.00 epochs"),
        ("dw_r101_fpn_mstrain_2x", "51082594 trained of 51307938", "24.00 epochs"),
        ("dw_r101_fpn_worefine_mstrain_2x", "51064154 trained of 51289498", "refinement false"),
        ("dw_r101_fpn_dconv_c3-c5_mstrain_2x", "53136322 trained of 53361666", "DCNv2"),
        (
            "dw_r101_fpn_dconv_c3-c5_worefine_mstrain_2x",
            "53117882 trained of 53343226",
            "refinement false",
        ),
        ("dw_x101_64x4d_fpn_mstrain_2x", "89811298 trained of 90214050", "resnext101_64x4d"),
        (
            "dw_x101_64x4d_fpn_worefine_mstrain_2x",
            "89792858 trained of 90195610",
            "refinement false",
        ),
    ];
    for (name, parameters, word) in expected {
        let mut c = launch(0, "dw-train");
        assert_contains(
            &run(c.args([name, "--dry-run", "--device", "cpu"]).current_dir(empty.path())),
            &[name, parameters, word, "GFLOPs"],
        );
    }
}

/// Golden state dicts list every tensor of the reference; the configurations of the same networks have as many numbers.
#[test]
fn parameters_are_the_reference_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/data/detector/r50_refine/case.json");
    let case: serde_json::Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let buffer =
        |n: &str| n.contains("running_") || n.contains("num_batches") || n.contains("center_prior");
    let numbers = |t: &serde_json::Value| {
        t["shape"].as_array().unwrap().iter().map(|d| d.as_u64().unwrap()).product::<u64>()
    };
    let state = case["state"].as_array().unwrap().iter();
    let all: u64 = state.filter(|t| !buffer(t["name"].as_str().unwrap())).map(numbers).sum();
    assert_eq!((case["config"].as_str().unwrap(), all), ("dw_r50_fpn_1x_coco", 32_315_810));
}

/// Deformable bottlenecks and ResNeXt train, save and go on bit for bit.
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
        let (whole, cut) = (format!("whole-{backbone}"), format!("cut-{backbone}"));
        sandbox.train(0, &whole, &sets("train.max_steps=4"));
        sandbox.train(0, &cut, &sets("train.max_steps=2"));
        sandbox.train(0, &cut, &sets("train.max_steps=4"));
        assert_eq!(sandbox.losses(&whole), sandbox.losses(&cut), "{backbone}");
        let tensors = Weights::open(&checkpoint(&sandbox, &whole)).unwrap().tensors;
        let name = "backbone.layer2.0.conv2.conv_offset.weight";
        assert_eq!(tensors[name].shape[0], 27);
        assert!(
            floats(&checkpoint(&sandbox, &whole), name).iter().any(|v| *v != 0.0),
            "the offsets learn"
        );
    }
    let mut c = launch(0, "dw-train");
    assert_contains(
        &run_failing(c.args(sandbox.train_args("w", &["model.dcn_stages=[3]"])), 2),
        &["model.dcn_stages", "no bottlenecks"],
    );
}

/// Weights of another network: a frozen tensor that would stay random is refused, others are told by part.
#[test]
fn weights_that_fit_in_part() {
    let sandbox = Sandbox::new();
    sandbox.train(0, "w", &["train.max_steps=1", "eval.every_epochs=0"]);
    let file = checkpoint(&sandbox, "w").join("model.safetensors");
    let train = |work: &str, sets: &[&str], file: &Path| {
        let mut c = launch(0, "dw-train");
        c.args(
            sandbox
                .train_args(work, &[&["train.max_steps=1", "eval.every_epochs=0"], sets].concat()),
        )
        .arg("--init")
        .arg(file);
        c
    };
    let said = run_failing(
        &mut train("a", &["model.backbone=resnet50", "model.frozen_stages=1"], &file),
        2,
    );
    assert_contains(
        &said,
        &["would stay at random values", "backbone ", " of ", "model.frozen_stages=-1"],
    );
    let out = train("b", &["model.backbone=resnet50"], &file).output().unwrap();
    assert!(out.status.success(), "{}", support::stderr(&out));
    assert_contains(
        &support::stderr(&out),
        &["WARN", "does not fit the whole network", "backbone ", "neck ", "bbox_head "],
    );
    // A number that is none.
    let mut bytes = std::fs::read(&file).unwrap();
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    let bad = sandbox.path("nan.safetensors");
    std::fs::write(&bad, bytes).unwrap();
    assert_contains(
        &run_failing(&mut train("c", &[], Path::new(&bad)), 3),
        &["nan.safetensors", "not finite"],
    );
    assert!(!Path::new(&sandbox.path("c/config.toml")).exists(), "before anything is written");
}
