//! Only the NCCL library that is in the process already is used.

mod nccl_double;

use std::sync::Arc;

use dw_launch::nccl::{Library, Nccl, loaded, version};
use dw_launch::{Collectives, Solo};
use nccl_double::{Counters, NoStream, compile};

#[test]
fn only_a_library_that_is_already_loaded_is_used() {
    let dir = tempfile::tempdir().unwrap();
    // The loader finds it by its soname, like libtorch's.
    let path = compile(dir.path(), &["-Wl,-soname,libnccl.so.2"]);
    assert_eq!((loaded(), version()), (None, None));
    let e = Library::open_on_all(&Solo).unwrap_err();
    assert_eq!(e.exit_code(), 2);
    for part in ["rank 0 on ", "libnccl.so.2", "\nhint: "] {
        assert!(e.to_string().contains(part), "{e}");
    }
    assert_eq!(loaded(), None, "no call has loaded a library");

    let counters = Counters::of(&path);
    let origin = loaded().unwrap();
    let path = path.canonicalize().unwrap();
    assert_eq!((origin.version.as_str(), &origin.path), ("2.28.9", &path));
    assert_eq!(origin.to_string(), format!("2.28.9 ({})", path.display()));
    assert_eq!(version().as_deref(), Some("2.28.9"));
    let library = Library::open_on_all(&Solo).unwrap();
    let nccl = Nccl::join(library, Arc::new(Solo), Box::new(NoStream)).unwrap();
    assert_eq!(nccl.name(), "NCCL 2.28.9 over none (one process)");
    nccl.leave();
    assert_eq!(counters.get("aborts"), 1, "calls go to the loaded library");
}

#[test]
fn old_version_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = compile(dir.path(), &["-DVERSION=21705"]);
    let e = Library::open(&path).unwrap_err();
    assert_eq!(e.exit_code(), 2);
    for part in ["2.17.5", "2.18", path.canonicalize().unwrap().to_str().unwrap()] {
        assert!(e.to_string().contains(part), "{e}");
    }
}
