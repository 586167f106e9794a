//! From a tree to a root file system image.

use crate::error::Error;
use crate::sites;
use crate::tree::{Attributes, Kind, NodeId, Source, Tree};
use bulla_abi::config::Rootfs;
use bulla_rootfs::{Builder, Special};
use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

/// Writes the image of `tree`, its hash tree and its site lists into `file`.
///
/// Contents are read from where they are; only sparse files are copied first, to an unnamed file
/// in the directory for temporary files. The tree is taken apart on the way: an image may have
/// millions of files, and each should be in memory once.
pub fn build_rootfs(mut tree: Tree, file: &File) -> Result<Rootfs, Error> {
    let mut builder = Builder::new();
    let links = links(&tree);
    // Of nodes with several names, the one that was added: the others are hard links.
    let mut first: HashMap<NodeId, Vec<u8>> = HashMap::new();
    let mut programs = Vec::new();
    let mut todo = vec![(Vec::new(), NodeId::ROOT)];
    while let Some((path, id)) = todo.pop() {
        if let Some(first) = first.get(&id) {
            builder.add_hardlink(&path, first)?;
            continue;
        }
        let node = tree.node_mut(id);
        let attributes = attributes(std::mem::take(&mut node.attributes));
        let kind = std::mem::replace(&mut node.kind, Kind::Fifo);
        if let Kind::Directory(children) = kind {
            for (name, child) in children {
                todo.push(([&path[..], b"/", &name].concat(), child));
            }
            builder.add_dir(&path, attributes)?;
            continue;
        }
        add(&mut builder, &tree, &path, attributes, &kind)?;
        if let (Kind::File(content), Some(inode)) = (kind, builder.last_added())
            && sites::is_program(&tree, &content)
        {
            programs.push((inode, content));
        }
        if links[id.0 as usize] > 1 {
            first.insert(id, path);
        }
    }
    // Only the layers are still needed.
    tree.nodes = Vec::new();
    drop((links, first));
    let out = file
        .try_clone()
        .map_err(Error::io(Path::new("the image")))?;
    let (written, lists) = std::thread::scope(|scope| {
        let lists = scope.spawn(|| sites::find(&tree, programs));
        let written = builder.finish_numbered(out).map_err(Error::from);
        let lists = lists.join().expect("looking for sites does not panic");
        (written, lists)
    });
    let (mut rootfs, numbers) = written?;
    let number = |(inode, list)| Some((numbers.of(inode)?, list));
    let lists = lists.into_iter().filter_map(number);
    let end = rootfs.data_size + rootfs.tree_size;
    rootfs.sites = sites::append(&lists.collect(), file, end)?;
    Ok(rootfs)
}

/// How many names each node has.
fn links(tree: &Tree) -> Vec<u32> {
    let mut links = vec![0; tree.nodes.len()];
    for node in &tree.nodes {
        if let Kind::Directory(children) = &node.kind {
            children.values().for_each(|id| links[id.0 as usize] += 1);
        }
    }
    links
}

fn add(
    builder: &mut Builder,
    tree: &Tree,
    path: &[u8],
    attributes: bulla_rootfs::Attributes,
    kind: &Kind,
) -> Result<(), Error> {
    let added = match kind {
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
    added.map_err(Error::from)
}

fn tree_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

fn attributes(attributes: Attributes) -> bulla_rootfs::Attributes {
    bulla_rootfs::Attributes {
        mode: (attributes.mode & 0o7777) as u16,
        uid: attributes.uid,
        gid: attributes.gid,
        modified: attributes.mtime,
        xattrs: attributes.xattrs.into_iter().collect(),
    }
}
