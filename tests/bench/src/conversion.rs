//! Converting an image: flattening, file system, hash tree, measurement; beside `sha256sum` and `cp`
//! of the same bytes.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use bulla_test_apps::bulla;
use sha2::{Digest, Sha256};

use crate::model::Counters;
use crate::row::{Figures, Party, Row, Target, Unit};
use crate::{Job, Settings};

const ROOM: u64 = 1 << 30;
/// The promise in MiB.
const MEMORY: f64 = 300.0;
/// Files of this many bytes, in turn; the average is that of a distribution's image, and there are
/// some twenty thousand of them.
const SIZES: [u64; 10] = [
    120, 700, 1500, 2300, 4096, 7000, 12_000, 30_000, 90_000, 220_000,
];
/// Every thousandth.
const LARGE: u64 = 12 << 20;

pub fn jobs() -> Vec<Job> {
    let time = "conversion of a 1 GiB image (native: sha256sum and cp)";
    let memory = "memory of that conversion (native: sha256sum)";
    let size = "size of the converted image (native: its files)";
    let job = |name, measure: fn(&'static str, &Settings) -> Result<Row, String>| {
        Job::new(name, 120, move |settings| measure(name, settings))
    };
    vec![job(time, times), job(memory, peak), job(size, sizes)]
}

fn times(name: &'static str, settings: &Settings) -> Result<Row, String> {
    let archive = Archive::new()?;
    let mut figures = Figures::default();
    for _ in 0..settings.runs {
        let start = Instant::now();
        archive.command("sha256sum", &[archive.path()])?;
        let copy = archive.place("copy");
        archive.command("cp", &[archive.path(), copy.clone()])?;
        figures.add(Party::Native, start.elapsed().as_nanos() as f64);
        std::fs::remove_file(copy).map_err(said)?;
        let start = Instant::now();
        archive.convert(&archive.place("words"))?;
        figures.add(Party::Enclave, start.elapsed().as_nanos() as f64);
    }
    figures.row(name, Counters::default(), Target::Ratio(2.0), Unit::Time)
}

fn peak(name: &'static str, _: &Settings) -> Result<Row, String> {
    let archive = Archive::new()?;
    let words = archive.place("words");
    let mebibytes = || {
        let kilobytes = std::fs::read_to_string(&words).map_err(said)?;
        let kilobytes = kilobytes.lines().last().and_then(|line| line.parse().ok());
        let kilobytes: f64 = kilobytes.ok_or("time(1) said nothing")?;
        Ok::<f64, String>(kilobytes / 1024.0)
    };
    let mut figures = Figures::default();
    run(timed(&words).arg("sha256sum").arg(archive.path()))?;
    figures.add(Party::Native, mebibytes()?);
    archive.convert(&words)?;
    figures.add(Party::Enclave, mebibytes()?);
    let target = Target::MoreMebibytes(MEMORY);
    figures.row(name, Counters::default(), target, Unit::Mebibytes)
}

fn sizes(name: &'static str, _: &Settings) -> Result<Row, String> {
    let archive = Archive::new()?;
    archive.convert(&archive.place("words"))?;
    let images = std::fs::read_dir(archive.place("cache/rootfs-3")).map_err(said)?;
    let sizes = images.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()));
    let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let mut figures = Figures::default();
    figures.add(Party::Native, mebibytes(archive.files));
    figures.add(Party::Enclave, mebibytes(sizes.sum()));
    let target = Target::MoreMebibytes((mebibytes(archive.files) * 0.05 + 10.0).floor());
    figures.row(name, Counters::default(), target, Unit::Mebibytes)
}

/// A docker-archive with one layer, half of it text and half of it random.
struct Archive {
    directory: tempfile::TempDir,
    /// Bytes of its files.
    files: u64,
}

impl Archive {
    fn new() -> Result<Archive, String> {
        let directory = tempfile::tempdir().map_err(said)?;
        let path = directory.path().join("layer.tar");
        let mut layer = Hashed {
            file: File::create(&path).map_err(said)?,
            hash: Sha256::new(),
        };
        let files = write_layer(&mut layer).map_err(said)?;
        let diff_id: String = layer
            .hash
            .finalize()
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect();
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/data/f0\"]}},\
             \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"sha256:{diff_id}\"]}}}}"
        );
        let manifest = "[{\"Config\":\"config.json\",\"RepoTags\":[\"bench:1\"],\
                        \"Layers\":[\"layer.tar\"]}]";
        let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text);
        file("config.json", &config).map_err(said)?;
        file("manifest.json", manifest).map_err(said)?;
        let archive = Archive { directory, files };
        let words = [
            "-cf",
            "image.tar",
            "config.json",
            "manifest.json",
            "layer.tar",
        ];
        archive.command("tar", &words.map(PathBuf::from))?;
        std::fs::remove_file(path).map_err(said)?;
        Ok(archive)
    }

    fn place(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn path(&self) -> PathBuf {
        self.place("image.tar")
    }

    fn command(&self, name: &str, words: &[PathBuf]) -> Result<(), String> {
        let mut command = Command::new(name);
        command.args(words).current_dir(self.directory.path());
        run(&mut command)
    }

    /// Converts it in an empty cache; the peak of memory in KiB goes to a file.
    fn convert(&self, words: &Path) -> Result<(), String> {
        let cache = self.place("cache");
        let _ = std::fs::remove_dir_all(&cache);
        let mut command = timed(words);
        command.arg(bulla()).arg("measure").arg(self.path());
        run(command.env("BULLA_CACHE", &cache))
    }
}

/// What follows, with its peak of memory in KiB written to a file.
fn timed(words: &Path) -> Command {
    let mut command = Command::new("/usr/bin/time");
    command.args(["-f", "%M", "-o"]).arg(words);
    command
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.stdout(Stdio::null()).output().map_err(said)?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn said(error: io::Error) -> String {
    error.to_string()
}

struct Hashed {
    file: File,
    hash: Sha256,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hash.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Writes entries until there is a GiB of files; the bytes of these.
fn write_layer(layer: &mut Hashed) -> io::Result<u64> {
    let text: Vec<u8> = b"what one finds in files of text: words, and the same words again\n"
        .repeat(LARGE as usize / 60);
    // A generator is enough: what matters is that no two files are equal.
    let mut state = 1u64;
    let mut random = vec![0; LARGE as usize];
    for word in random.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    let mut out = io::BufWriter::with_capacity(1 << 20, layer);
    let mut total = 0;
    let mut number = 0;
    while total < ROOM {
        let size = match number % 1000 {
            999 => LARGE,
            turn => SIZES[turn as usize % SIZES.len()] + number % 97,
        };
        let name = format!("data/{:03}/f{number}", number % 300);
        out.write_all(&header(&name, size))?;
        let source = if number % 2 == 0 { &text } else { &random };
        let start = (number * 64 % (LARGE - size + 1).min(1 << 20)) as usize;
        let mark = format!("{number:>20}");
        let mark = &mark.as_bytes()[..mark.len().min(size as usize)];
        out.write_all(mark)?;
        out.write_all(&source[start..][..size as usize - mark.len()])?;
        out.write_all(&vec![0; (size.next_multiple_of(512) - size) as usize])?;
        total += size;
        number += 1;
    }
    out.write_all(&[0; 1024])?;
    out.flush()?;
    Ok(total)
}

/// A tar header of a file.
fn header(name: &str, size: u64) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0000000");
    block[116..123].copy_from_slice(b"0000000");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"14524770400");
    block[148..156].fill(b' ');
    block[156] = b'0';
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block
}
