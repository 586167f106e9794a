//! A manifest to start from: every key, commented, with its default or what the image says.

use super::keys::{Key, keys};
use std::fmt::Write;

/// Values that the image has, by key, as TOML.
pub type FromImage<'a> = &'a [(String, String)];

/// The text of a commented manifest for an image called `name`.
pub fn template(name: &str, from_image: FromImage<'_>) -> String {
    let mut out = format!(
        "# Manifest of {name} for `bulla build --manifest` and `bulla run --manifest`.\n\
         # Every key is optional. Lines that are commented out show the default; where the image\n\
         # decides, what it says.\n"
    );
    let keys = keys();
    let top = |key: &&Key| !key.path.contains(['.', '[']);
    let has_inner = |key: &&Key| keys.iter().any(|other| is_inside(&other.path, &key.path));
    for key in keys.iter().filter(top).filter(|key| !has_inner(key)) {
        if key.path != "attestation" {
            entry(&mut out, key, &key.path, from_image);
        }
    }
    for section in keys.iter().filter(top).filter(has_inner) {
        out.push('\n');
        comment(&mut out, &section.description);
        match section.path.as_str() {
            // With this section the container would want a coordinator.
            "coordinator" => out.push_str("# [coordinator]\n"),
            "environment" => {
                out.push_str("[environment]\n");
                for (key, value) in from_image {
                    if let Some(variable) = key.strip_prefix("environment.") {
                        let _ = writeln!(out, "# {variable} = {value}");
                    }
                }
                out.push_str(
                    "# LOG_LEVEL = { host = true, pattern = \"[a-z]*\", default = \"info\" }\n\
                     # PASSWORD = { secret = \"database-password\" }\n",
                );
            }
            "mounts" => {
                out.push_str("# [[mounts]]\n");
                for key in keys.iter().filter(|key| is_inside(&key.path, "mounts")) {
                    comment(&mut out, &format!("  {}", key.description));
                    let name = key.path.trim_start_matches("mounts[].");
                    let value = match name {
                        "target" => "\"/tmp\"",
                        "type" => "\"tmpfs\"",
                        "size" => "\"64M\"",
                        "key" => "\"signer\"",
                        _ => key.default.as_deref().unwrap_or("\"\""),
                    };
                    let _ = writeln!(out, "# {name} = {value}");
                }
            }
            name => {
                let _ = writeln!(out, "[{name}]");
                for key in keys.iter().filter(|key| is_inside(&key.path, name)) {
                    let short = &key.path[name.len() + 1..];
                    if !short.contains('.') {
                        entry(&mut out, key, short, from_image);
                    }
                }
            }
        }
    }
    out
}

fn is_inside(path: &str, section: &str) -> bool {
    let rest = path.strip_prefix(section);
    rest.is_some_and(|rest| rest.starts_with(['.', '[']))
}

fn entry(out: &mut String, key: &Key, name: &str, from_image: FromImage<'_>) {
    out.push('\n');
    comment(out, &key.description);
    let image = from_image.iter().find(|(path, _)| *path == key.path);
    let value = image.map(|(_, value)| value.as_str());
    let value = value.or(key.default.as_deref()).unwrap_or(match name {
        "memory" => "\"4G\"",
        "threads" => "1024",
        "patterns" => "[\"*\"]",
        "fixed" | "entrypoint" => "[]",
        "hosts" => "{}",
        _ => "\"\"",
    });
    let _ = writeln!(out, "# {name} = {value}");
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split_whitespace() {
        if line.len() + word.len() > 96 {
            let _ = writeln!(out, "{line}");
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(out, "{line}");
}

#[cfg(test)]
mod tests {
    use super::super::Manifest;
    use super::*;

    fn is_assignment(text: &str) -> bool {
        text.contains(" = ") && toml::from_str::<toml::Table>(text).is_ok()
    }

    #[test]
    fn the_template_is_a_manifest_and_so_is_its_uncommented_form() {
        let image = [
            ("entrypoint".to_owned(), "[\"/bin/x\"]".to_owned()),
            ("environment.PATH".to_owned(), "\"/bin\"".to_owned()),
            ("workdir".to_owned(), "\"/srv\"".to_owned()),
            ("stop_signal".to_owned(), "\"SIGTERM\"".to_owned()),
            ("user".to_owned(), "\"app\"".to_owned()),
        ];
        let text = template("x", &image);
        assert_eq!(
            Manifest::parse(&text).unwrap(),
            Manifest::default(),
            "{text}"
        );
        let uncommented: Vec<&str> = text
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(code) if line == "# [[mounts]]" || is_assignment(code) => code,
                _ => line,
            })
            // Contradicts `mode = "locked"`.
            .filter(|line| !line.starts_with("patterns"))
            // Only volumes have one.
            .filter(|line| !line.starts_with("key ="))
            .collect();
        let manifest = Manifest::parse(&uncommented.join("\n")).unwrap_or_else(|error| {
            panic!("{error}\n{}", uncommented.join("\n"));
        });
        assert_eq!(manifest.entrypoint.unwrap(), ["/bin/x"]);
        assert_eq!(manifest.mounts.len(), 1);
        assert_eq!(manifest.environment.len(), 3);
    }
}
