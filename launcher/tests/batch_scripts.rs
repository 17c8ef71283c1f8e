//! Runs the scripts in `slurm/` without SLURM, with a `dw-launch` that prints its arguments.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// Arguments that `slurm/NAME.sbatch` passes to `dw-launch`.
fn launched(name: &str, args: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let launch = dir.path().join("dw-launch");
    std::fs::write(&launch, "#!/bin/sh\necho \"launched: $*\"\n").unwrap();
    std::fs::set_permissions(&launch, std::fs::Permissions::from_mode(0o755)).unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let path = std::env::var("PATH").unwrap();
    let out = Command::new("bash")
        .arg(root.join(format!("slurm/{name}.sbatch")))
        .args(args)
        .current_dir(dir.path())
        .env("PATH", format!("{}:{path}", dir.path().display()))
        .env("SLURM_SUBMIT_DIR", root)
        .env_remove("DW_ENV")
        .env_remove("SLURM_JOB_ID")
        .env_remove("SLURM_ARRAY_TASK_ID")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.status.success(), "{text}{}", String::from_utf8_lossy(&out.stderr));
    text.lines().find_map(|l| l.strip_prefix("launched: ")).unwrap().to_owned()
}

#[test]
fn training_gets_a_cuda_device_unless_one_is_given() {
    for name in ["train_1node", "train_multinode"] {
        for (args, expected) in [
            (&[][..], "dw-train --device cuda"),
            (&["smoke", "--set", "a=b c"], "dw-train --device cuda smoke --set a=b c"),
            (&["smoke", "--device", "cpu"], "dw-train smoke --device cpu"),
            (&["--device=auto", "smoke"], "dw-train --device=auto smoke"),
            (&["smoke", "--device"], "dw-train smoke --device"),
        ] {
            assert_eq!(launched(name, args), format!("--max-restarts 2 -- {expected}"), "{name}");
        }
    }
}
