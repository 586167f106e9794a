//! A row in a process of its own, which cannot outlive its limit.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::row::Row;

/// Measures the row `name`; the error is the end of what the process said.
pub fn measure(name: &str, runs: usize, limit: Duration) -> Result<Row, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let mut child = Command::new(own)
        .args(["--row", name, "--runs", &runs.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| error.to_string())?;
    let stdout = child.stdout.take().map(BufReader::new);
    let stderr = child.stderr.take();
    let said = std::thread::spawn(move || {
        let mut text = Vec::new();
        let _ = stderr.map(|mut pipe| pipe.read_to_end(&mut text));
        String::from_utf8_lossy(&text).into_owned()
    });
    let row = std::thread::spawn(move || {
        let lines = stdout.into_iter().flat_map(|pipe| pipe.lines());
        let rows = lines.map_while(Result::ok);
        rows.filter_map(|line| serde_json::from_str::<Row>(&line).ok())
            .last()
    });
    let ended = wait(&mut child, limit);
    if !ended {
        // What it started would live on and hold the pipes.
        end_tree(child.id());
        let _ = child.wait();
    }
    match row.join().ok().flatten() {
        Some(row) => Ok(row),
        None if !ended => Err(format!("no end after {} s", limit.as_secs())),
        None => {
            let said = said.join().unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            Err(lines[lines.len().saturating_sub(30)..].join("\n"))
        }
    }
}

/// Whether it ended within the limit.
fn wait(child: &mut Child, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while Instant::now() < end {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

/// Kills a process and all below it, whatever groups they are in.
fn end_tree(root: u32) {
    let parents: Vec<(u32, u32)> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
            let parent = stat.rsplit(')').next()?.split_whitespace().nth(1)?;
            Some((id, parent.parse().ok()?))
        })
        .collect();
    let mut tree = vec![root];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        let children = parents.iter().filter(|(_, of)| *of == parent);
        tree.extend(children.map(|(id, _)| *id));
        next += 1;
    }
    let ids = tree.iter().map(u32::to_string);
    let _ = Command::new("kill")
        .args(["-s", "KILL", "--"])
        .args(ids)
        .status();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_what_a_process_started() {
        let mut shell = Command::new("sh")
            .args(["-c", "setsid sleep 1000 & echo $!; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(shell.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(!wait(&mut shell, Duration::from_millis(60)));
        end_tree(shell.id());
        shell.wait().unwrap();
        // It takes a moment to die, and is a zombie until its new parent looks, if anybody does.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", line.trim()));
            stat.is_ok_and(|stat| !stat.contains(") Z ") && !stat.contains(") X "))
        };
        for _ in 0..1000 {
            if !lives() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("the process still lives");
    }
}
