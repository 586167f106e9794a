//! Link arguments of the enclave programs: static position-independent executables with nothing
//! from the machine they are built on.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    for argument in [
        "-nostartfiles",
        "-nostdlib",
        "-static-pie",
        "-Wl,--build-id=none",
        "-Wl,--gc-sections",
        "-Wl,-z,noexecstack",
        "-Wl,-z,norelro",
        "-Wl,-z,max-page-size=4096",
        "-Wl,-z,separate-code",
        "-Wl,--no-dynamic-linker",
    ] {
        println!("cargo:rustc-link-arg-bins={argument}");
    }
    for (program, entry) in [
        ("bulla-bootstrap", "bulla_bootstrap_entry"),
        ("bulla-runtime", "bulla_runtime_entry"),
    ] {
        println!("cargo:rustc-link-arg-bin={program}=-Wl,-e,{entry}");
    }
}
