//! One test for each program.

use bulla_test_apps::{Side, sides};
use bulla_test_linux::{Check, Linked, Program, check, counter};

#[test]
fn signals() {
    check("signals");
}

#[test]
fn processes() {
    check("processes");
}

#[test]
fn tracing() {
    check("tracing");
}

#[test]
fn threads() {
    check("threads");
}

#[test]
fn timers() {
    check("timers");
}

#[test]
fn ipc() {
    check("ipc");
}

#[test]
fn storm() {
    check("storm");
}

#[test]
fn aliases() {
    check("aliases");
}

#[test]
fn siblings() {
    check("siblings");
}

#[test]
fn herd() {
    check("herd");
}

#[test]
fn unprivileged() {
    check("unprivileged");
}

/// The container's root moves ranges, as a disk below Linux's overlay: natively it may be anything.
#[test]
fn corners() {
    check("corners");
    if sides().contains(&Side::Enclave) {
        let program = Program::compile("programs/corners.c", "corners-of-disks");
        let output = program.run_with(Side::Enclave, &[], &["/ranges"]);
        assert!(output.lines().any(|line| line == "corners: ok"), "{output}");
    }
}

#[test]
fn keys() {
    check("keys");
}

#[test]
fn lists() {
    check("lists");
}

#[test]
fn notices() {
    check("notices");
}

#[test]
fn faults() {
    check("faults");
}

#[test]
fn restarts() {
    check("restarts");
}

#[test]
fn limits() {
    // Those of the kernel are this machine's natively.
    let check = Check {
        arguments: &["settings"],
        ..Check::new("limits")
    };
    check.run();
}

#[test]
fn restrictions() {
    check("restrictions");
}

#[test]
fn resident() {
    check("resident");
}

#[test]
fn futexes() {
    check("futexes");
}

#[test]
fn edges() {
    check("edges");
}

/// AVX-512's registers over everything that interrupts a program.
#[test]
fn vectors() {
    check("vectors");
}

/// All registers are full whenever the program exits; the host sees nothing of it.
#[test]
fn registers() {
    for profile in ["full", "dcsv3-6.8", "dcsv3-5.15", "dcsv2"] {
        let check = Check {
            options: &[
                "--json",
                "--stats",
                "--examine-exits",
                "--profile",
                profile,
                "--memory",
                "256M",
            ],
            ..Check::new("registers")
        };
        let Some(output) = check.run() else {
            return;
        };
        let exits = counter(&output, "exits");
        assert!(exits > 100, "{profile}: {exits} exits\n{output}");
        // The last exits of threads that the container's end overtakes are counted by one side only.
        assert!(
            counter(&output, "exits_examined") + 8 >= exits,
            "{profile}:\n{output}"
        );
        assert_eq!(counter(&output, "exits_unclean"), 0, "{profile}:\n{output}");
    }
}

/// Kernel objects until there is no memory for any more.
fn exhaust(profile: &str) {
    Check {
        options: &["--quiet", "--profile", profile, "--memory", "64M"],
        arguments: &["100000000"],
        ..Check::new("exhaust")
    }
    .run();
}

#[test]
fn exhaustion_in_the_dynamic_layout() {
    exhaust("full");
}

#[test]
fn exhaustion_in_the_static_layout() {
    exhaust("dcsv3-5.15");
}

/// Runs a program with sites rewritten, and with each call trapping.
fn with_and_without_rewriting(name: &str, linked: Linked) {
    let common = ["--json", "--stats"];
    let mut traps = [0; 2];
    for (index, options) in [&[][..], &["--no-site-rewriting"]].into_iter().enumerate() {
        let options = [&common[..], options].concat();
        let check = Check {
            linked,
            options: &options,
            ..Check::new(name)
        };
        let Some(output) = check.run() else {
            return;
        };
        traps[index] = counter(&output, "syscall_traps");
        let rewritten = counter(&output, "sites_rewritten");
        assert_eq!(rewritten > 0, index == 0, "{linked:?}: {rewritten} sites");
    }
    assert!(
        traps[0] * 2 < traps[1],
        "{linked:?}: {} traps with rewriting, {} without",
        traps[0],
        traps[1]
    );
}

#[test]
fn sites() {
    for linked in Linked::ALL {
        with_and_without_rewriting("sites", linked);
    }
}

/// CPUID and RDTSC: rewritten, and with each one trapping where it does.
#[test]
fn instructions() {
    for linked in Linked::ALL {
        Check {
            linked,
            options: &["--quiet"],
            ..Check::new("instructions")
        }
        .run();
    }
    // A machine on which enclaves may not read the TSC.
    let common = ["--json", "--stats", "--profile", "dcsv2"];
    let mut exceptions = [0; 2];
    for (index, options) in [&[][..], &["--no-site-rewriting"]].into_iter().enumerate() {
        let options = [&common[..], options].concat();
        let check = Check {
            options: &options,
            ..Check::new("instructions")
        };
        let Some(output) = check.run() else {
            return;
        };
        exceptions[index] = counter(&output, "exceptions");
        // Each leaf is asked of the host once. Where nothing is rewritten CPUID may execute.
        if index == 0 {
            let asked = counter(&output, "Cpuid");
            assert!((1..100).contains(&asked), "{asked} leaves");
        }
    }
    assert!(
        exceptions[0] * 4 < exceptions[1],
        "{} exceptions with rewriting, {} without",
        exceptions[0],
        exceptions[1]
    );
}

#[test]
fn cancel() {
    for linked in Linked::ALL {
        with_and_without_rewriting("cancel", linked);
    }
}

/// Kernels without Syscall User Dispatch: the emulator catches system calls by seccomp.
#[test]
fn without_user_dispatch() {
    for name in ["sites", "threads", "signals"] {
        Check {
            options: &["--quiet", "--emulate-with-seccomp"],
            ..Check::new(name)
        }
        .run();
    }
}

#[test]
fn arguments() {
    check("arguments");
}

#[test]
fn copies() {
    check("copies");
}

#[test]
fn ancillary() {
    check("ancillary");
}

#[test]
fn wakeups() {
    check("wakeups");
}

#[test]
fn flags() {
    check("flags");
}

#[test]
fn terminals() {
    check("terminals");
}

#[test]
fn files() {
    check("files");
}

/// What a program finds in the enclave is what it finds on this machine, line by line.
fn same(name: &str) {
    check(name);
    let program = Program::compile(&format!("programs/{name}.c"), name);
    let outputs: Vec<String> = sides()
        .iter()
        .map(|side| {
            let output = program.run(*side, &[]);
            let own = output.lines().filter(|line| !line.starts_with("bulla: "));
            own.collect::<Vec<_>>().join("\n")
        })
        .collect();
    if let [first, second] = &outputs[..] {
        assert_eq!(first, second);
    }
}

#[test]
fn interfaces() {
    same("interfaces");
}

#[test]
fn listing() {
    same("listing");
}

#[test]
fn sockets() {
    same("sockets");
}

#[test]
fn accounts() {
    check("accounts");
}
