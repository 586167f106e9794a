//! From a tree to a root file system image.

use crate::error::Error;
use crate::sites;
use crate::tree::{Attributes, Kind, Node, NodeId, Source, Tree};
use bulla_abi::config::Rootfs;
use bulla_rootfs::{Builder, Special};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// Writes the image of `tree`, its hash tree and its site lists into `file`.
///
/// Contents are read from where they are; only sparse files are copied first, to an unnamed file
/// in the directory for temporary files.
pub fn build_rootfs(tree: &Tree, file: &File) -> Result<Rootfs, Error> {
    let failed = |error: bulla_rootfs::Error| Error::Rootfs(error.to_string());
    let mut builder = Builder::new();
    // Names that a node has got already: the next ones are hard links.
    let mut names: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut todo = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = todo.pop() {
        let node = tree.node(id);
        if let Kind::Directory(_) = node.kind {
            for (name, child) in tree.children(id) {
                todo.push(([&path[..], b"/", name].concat(), child));
            }
            builder
                .add_dir(&path, attributes(&node.attributes))
                .map_err(failed)?;
        } else if let Some(first) = names.get(&id) {
            builder.add_hardlink(&path, first).map_err(failed)?;
        } else {
            add(&mut builder, tree, &path, node)?;
            names.insert(id, path);
        }
    }
    let out = file
        .try_clone()
        .map_err(Error::io(Path::new("the image")))?;
    let (written, lists) = std::thread::scope(|scope| {
        let lists = scope.spawn(|| sites::find(tree, names.keys().copied()));
        let written = builder.finish_numbered(out).map_err(failed);
        let lists = lists.join().expect("looking for sites does not panic");
        (written, lists)
    });
    let (mut rootfs, numbers) = written?;
    let number = |(id, list)| Some((numbers.get(names.get(&id)?)?, list));
    let lists = lists.into_iter().filter_map(number);
    let end = rootfs.data_size + rootfs.tree_size;
    rootfs.sites = sites::append(&lists.collect(), file, end)?;
    Ok(rootfs)
}

fn add(builder: &mut Builder, tree: &Tree, path: &[u8], node: &Node) -> Result<(), Error> {
    let attributes = attributes(&node.attributes);
    let added = match &node.kind {
        Kind::Directory(_) => builder.add_dir(path, attributes),
        Kind::Symlink(target) => builder.add_symlink(path, attributes, target),
        &Kind::CharDevice { major, minor } => {
            let special = Special::CharacterDevice { major, minor };
            builder.add_special(path, attributes, special)
        }
        &Kind::BlockDevice { major, minor } => {
            builder.add_special(path, attributes, Special::BlockDevice { major, minor })
        }
        Kind::Fifo => builder.add_special(path, attributes, Special::Fifo),
        Kind::Socket => builder.add_special(path, attributes, Special::Socket),
        Kind::File(content) => match &content.source {
            &Source::Extent { layer, offset } => {
                let layer = &tree.layers[usize::from(layer)];
                let offset = layer.offset + offset;
                let file = layer.file.clone();
                builder.add_file_from_range(path, attributes, content.size, file, offset)
            }
            Source::Host(host) => builder.add_file_from_path(path, attributes, content.size, host),
            Source::Sparse { .. } => {
                let mut reader = tree.open(content).map_err(Error::io(tree_path(path)))?;
                builder.add_file(path, attributes, content.size, &mut reader)
            }
        },
    };
    added.map_err(|error| Error::Rootfs(error.to_string()))
}

fn tree_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn attributes(attributes: &Attributes) -> bulla_rootfs::Attributes {
    bulla_rootfs::Attributes {
        mode: (attributes.mode & 0o7777) as u16,
        uid: attributes.uid,
        gid: attributes.gid,
        modified: attributes.mtime,
        xattrs: attributes.xattrs.iter().cloned().collect(),
    }
}
