//! What the host keeps of protected volumes: numbered objects, files to the loader.

/// Objects of one volume.
pub const OBJECTS: u64 = 4;
/// The two logs and the anchor have the numbers 0 to 2.
pub const ANCHOR: u64 = 2;
/// The key, where the host gives it: [`KEY_SIZE`] bytes, which can only be read.
pub const KEY: u64 = 3;
/// Bytes of a key from the host.
pub const KEY_SIZE: usize = 32;
/// Most volumes of a container.
pub const VOLUMES_MAX: usize = 32;

/// The number of an object in host calls.
pub const fn object(volume: u64, object: u64) -> u64 {
    volume * OBJECTS + object
}
