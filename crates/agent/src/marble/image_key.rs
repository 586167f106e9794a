//! The key of an encrypted image: from the coordinator to the kernel, which then opens the image's
//! files. Until then there is nothing but this program and its settings.

use std::fs::{self, OpenOptions};
use std::io::Write;

use zeroize::Zeroizing;

use super::MarbleError;

/// Where the kernel takes it, once.
const PLACE: &str = "/dev/attestation/image_key";
/// Bytes of a key.
const SIZE: usize = 32;

/// Gives the key, as the variable `name` of the coordinator has it, to the kernel.
pub fn give(name: &str, value: Option<&[u8]>) -> Result<(), MarbleError> {
    let key = value.and_then(decode);
    let key = key.ok_or_else(|| MarbleError::NoImageKey(name.to_owned()))?;
    OpenOptions::new()
        .write(true)
        .open(PLACE)
        .and_then(|mut file| file.write_all(&key[..]))
        .map_err(MarbleError::ImageKey)
}

/// 64 hexadecimal digits, with space around them.
fn decode(text: &[u8]) -> Option<Zeroizing<[u8; SIZE]>> {
    let text = text.trim_ascii();
    if text.len() != 2 * SIZE {
        return None;
    }
    let mut key = Zeroizing::new([0; SIZE]);
    for (byte, digits) in key.iter_mut().zip(text.chunks(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = (digit(digits[0])? << 4 | digit(digits[1])?) as u8;
    }
    Some(key)
}

/// The present user's home directory, which the kernel could not know when this program began.
pub fn home() -> String {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    home_in(&passwd, rustix::process::getuid().as_raw()).unwrap_or_else(|| "/".into())
}

fn home_in(passwd: &str, uid: u32) -> Option<String> {
    let fields = |line: &str| line.split(':').map(str::to_owned).collect::<Vec<_>>();
    let mut users = passwd.lines().map(fields);
    let user = users.find(|user| user.get(2).is_some_and(|id| *id == uid.to_string()))?;
    user.get(5).filter(|home| !home.is_empty()).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hexadecimal() {
        let key = decode(format!(" {}0F\n", "a1".repeat(31)).as_bytes()).unwrap();
        assert_eq!((key[0], key[31]), (0xa1, 15));
        for text in [
            "",
            "a1",
            &"a1".repeat(33),
            &"g1".repeat(32),
            &"+1".repeat(32),
        ] {
            assert!(decode(text.as_bytes()).is_none(), "{text}");
        }
    }

    #[test]
    fn homes_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:5::/srv/web:\nx:x:7:7:::\n";
        assert_eq!(home_in(passwd, 101).as_deref(), Some("/srv/web"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8), None);
    }
}
