//! `bulla run -it` feels like a shell: the same session, natively and in the enclave.

use std::process::Command;
use std::time::{Duration, Instant};

use bulla_test_apps::{Program, Side, Terminal, sides};

fn bash(side: Side) -> Terminal {
    let shell = ["bash", "--norc", "--noediting", "-i"];
    let mut terminal = Terminal::start(Program::new("shell", &shell), side);
    // Quotes in the command, so that its echo is not taken for the prompt.
    terminal.step("PS1='rea''dy> '\n", "ready> ");
    terminal
}

#[test]
fn job_control() {
    for side in sides() {
        let mut shell = bash(side);
        shell.step(
            "stty size; tty -s && echo 'a t''ty'\n",
            "24 80\r\na tty\r\nready> ",
        );
        shell.step("ls -l $(tty) | cut -c1\n", "c\r\nready> ");
        // The command's echo comes before it runs; the marker says that it does.
        shell.step("(echo star''ted; exec sleep 100)\n", "started");
        shell.step("\x1a", "Stopped");
        shell.expect("ready> ");
        shell.step("jobs\n", "Stopped");
        shell.step("bg\n", "&\r\nready> ");
        shell.step("fg\n", "exec sleep 100 )\r\n");
        // The shell says what it resumes before it gives the terminal away.
        std::thread::sleep(Duration::from_millis(500));
        shell.step("\x03", "ready> ");
        shell.step("echo status $?\n", "status 130");
        shell.step(
            "(echo st''arted; sleep 100 | cat) ; echo af''ter\n",
            "started",
        );
        shell.step("\x1c", "ready> ");
        // A background job that reads from the terminal stops.
        shell.step("cat & sleep 0.5; jobs\n", "Stopped");
        shell.step("kill -9 %1; wait; echo do''ne\n", "done");
        shell.step("bash -c 'kill -STOP $$; echo res''umed'\n", "Stopped");
        shell.step("fg\n", "resumed");
        shell.step(
            "ps -o tpgid=,pgid= $$ | awk '{print ($1 > 0), \"gro\" \"up\"}'\n",
            "1 group",
        );
        shell.send("exit 5\n");
        let (status, _) = shell.wait();
        assert_eq!(status.code(), Some(5), "{side:?}");
    }
}

#[test]
fn canonical_input_and_window_size() {
    for side in sides() {
        let mut shell = bash(side);
        shell.step("cat; echo e''nd\n", "\n");
        shell.step("typed\x7f\x7fXY\x17line two\n", "\r\nline two\r\n");
        shell.step("\x04", "end");
        shell.expect("ready> ");
        shell.step("trap 'echo size $(stty size)' WINCH; echo s''et\n", "set");
        shell.expect("ready> ");
        shell.resize(40, 100);
        // The shell runs the trap after the next line; the signal must be there by then.
        std::thread::sleep(Duration::from_millis(500));
        shell.step("\n", "size 40 100");
        shell.step(
            "python3 -c 'import os; print(os.get_terminal_size())'\n",
            "columns=100, lines=40",
        );
        shell.step(
            "stty -echo; read -r secret; stty echo; echo got $secret | tr x y\n",
            "\n",
        );
        shell.step("xxx\n", "got yyy");
        shell.step(
            "stty raw -echo; dd bs=1 count=3 2>/dev/null | od -An -c; stty sane; echo ba''ck\n",
            "\n",
        );
        std::thread::sleep(Duration::from_millis(500));
        shell.step("\x03\x1aq", "003 032   q");
        shell.expect("back");
        shell.send("exit\n");
        assert_eq!(shell.wait().0.code(), Some(0), "{side:?}");
    }
}

#[test]
fn full_screen_programs() {
    for side in sides() {
        let mut shell = bash(side);
        shell.step("seq 200 > /tmp/f; less /tmp/f\n", "\r\n22\r\n");
        shell.step(" ", "\r\n45\r\n");
        shell.step("G", "200");
        shell.step("q", "ready> ");
        shell.step("vi /tmp/v\n", "/tmp/v");
        shell.step("ihello world\x1b:wq\r", "ready> ");
        shell.step("tr o 0 < /tmp/v\n", "hell0 w0rld");
        shell.step("python3 -q\n", ">>> ");
        shell.step("print(6 * 7)\n", "42\r\n");
        shell.step(
            "import time; print('sl' + 'eeps', flush=True); time.sleep(100)\n",
            "sleeps",
        );
        // Python looks for signals before it sleeps: one between the two would wait for the sleep.
        std::thread::sleep(Duration::from_millis(500));
        shell.step("\x03", "KeyboardInterrupt");
        shell.expect(">>> ");
        shell.step("\x04", "ready> ");
        shell.step("top -d 1\n", "PID");
        shell.step("q", "ready> ");
        shell.step(
            "python3 -c \"import pty; pty.spawn(['bash', '--norc', '-c', 'tty; exit 3'])\"\n",
            "/dev/pts/",
        );
        shell.expect("ready> ");
        shell.step("script -qc 'tty; stty size' /dev/null\n", "/dev/pts/");
        shell.expect("ready> ");
        shell.send("exit\n");
        assert_eq!(shell.wait().0.code(), Some(0), "{side:?}");
    }
}

/// The host's terminal is as it was before, even after SIGKILL.
#[test]
fn the_hosts_terminal_is_restored() {
    if sides() == [Side::Native] {
        return;
    }
    for signal in ["TERM", "KILL"] {
        let mut shell = bash(Side::Enclave);
        let before = shell.settings();
        shell.step(
            "trap 'exit 9' TERM; stty raw -echo; echo G''O; read -rsN1\n",
            "GO",
        );
        assert_ne!(shell.settings().local_modes, before.local_modes);
        let id = shell.id().to_string();
        let killed = Command::new("kill").args(["-s", signal, &id]).status();
        assert!(killed.expect("kill").success());
        let settings = || Some((before.input_modes, before.output_modes, before.local_modes));
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let now = shell.settings();
            if Some((now.input_modes, now.output_modes, now.local_modes)) == settings() {
                break;
            }
            assert!(Instant::now() < end, "still raw after SIG{signal}");
            std::thread::sleep(Duration::from_millis(20));
        }
        let (status, _) = shell.wait();
        if signal == "TERM" {
            assert_eq!(status.code(), Some(9), "the trap ran");
        }
    }
}
