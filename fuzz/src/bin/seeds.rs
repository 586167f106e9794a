//! Writes images to start fuzzing from: `cargo run --bin seeds`, in this directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::Path;

use bulla_rootfs::{Attributes, Builder, Special};

fn main() {
    let corpus = Path::new("corpus/erofs");
    fs::create_dir_all(corpus).expect("the directory can be made");
    for number in 0..4u64 {
        let mut builder = Builder::new();
        let xattrs = BTreeMap::from([(b"security.capability".to_vec(), vec![1; 20])]);
        let rich = Attributes {
            xattrs,
            uid: 70_000,
            ..Attributes::default()
        };
        let plain = Attributes::default;
        builder
            .add_dir(b"files", if number & 1 == 0 { plain() } else { rich })
            .expect("valid");
        for size in [0, 5, 5000] {
            let name = format!("files/{size}");
            let content = vec![b'x'; size];
            let added = builder.add_file(
                name.as_bytes(),
                plain(),
                size as u64,
                &mut content.as_slice(),
            );
            added.expect("valid");
        }
        builder
            .add_symlink(b"link", plain(), b"files/5")
            .expect("valid");
        builder
            .add_special(b"pipe", plain(), Special::Fifo)
            .expect("valid");
        if number & 2 != 0 {
            let mut sparse = vec![0; 1 << 20];
            sparse[70_000] = 1;
            let size = sparse.len() as u64;
            builder
                .add_file(b"sparse", plain(), size, &mut sparse.as_slice())
                .expect("valid");
            for index in 0..60 {
                let name = format!("many/{index}-{}", "n".repeat(90));
                builder
                    .add_special(name.as_bytes(), plain(), Special::Socket)
                    .expect("valid");
            }
        }
        let path = corpus.join(format!("seed-{number}"));
        let out = File::create(&path).expect("the seed can be written");
        builder.finish(out).expect("the seed can be built");
    }
}
