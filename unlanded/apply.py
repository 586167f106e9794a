import shutil
def sub(p, pairs):
    s=open(p).read()
    for a,b in pairs:
        assert a in s, (p,a)
        s=s.replace(a,b,1)
    open(p,'w').write(s)
C='crates/cli/src/'
shutil.copy('unlanded/prune.rs','crates/oci/src/prune.rs')
shutil.copy('unlanded/cache.rs',C+'cache.rs')
shutil.copy('unlanded/proof.rs','tests/apps/tests/proof.rs')
s=open('crates/oci/src/lib.rs').read()
i=s.index('mod registry') if 'mod registry' in s else None
import re
m=re.search(r'^(pub )?mod registry;',s,re.M)
s=s[:m.start()]+'mod prune;\n'+s[m.start():]
s=s.replace('pub use registry::full_name;','pub use prune::Usage;\npub use registry::full_name;',1)
open('crates/oci/src/lib.rs','w').write(s)
sub(C+'main.rs',[('mod build;\n','mod build;\nmod cache;\n'),('        Command::Ps(arguments)','        Command::Cache(arguments) => (cache::run(arguments).map(|()| 0), false),\n        Command::Ps(arguments)')])
sub(C+'args.rs',[('''    /// The entry point of confidential images, inside their containers
''','''    /// Show what the cache takes on disk, and make it smaller
    #[command(subcommand)]
    Cache(crate::cache::Arguments),
    /// The entry point of confidential images, inside their containers
''')])
s=open(C+'workload.rs').read()
a='''            Source::Directory(path) => {
                return Ok(Opened::Plain(cache.directory(path, build)?.into()));
            }'''
assert a in s
s=s.replace(a,'''            Source::Directory(path) => {
                return Ok(Opened::plain(&cache, cache.directory(path, build)?));
            }''')
a='''            return Ok(Opened::Plain(stored.into()));
        }'''
assert a in s
s=s.replace(a,'''            return Ok(Opened::plain(&cache, stored));
        }''')
a='''            false => Opened::Plain(source.stored(&cache, image, build)?.into()),'''
assert a in s
s=s.replace(a,'''            false => Opened::plain(&cache, source.stored(&cache, image, build)?),''')
a='''impl Source<'_> {'''
s=s.replace(a,'''impl Opened {
    /// An ordinary image, which is in use from now on; others make room for a new one.
    fn plain(cache: &Cache, stored: Stored) -> Opened {
        stored.touch();
        if stored.built {
            crate::cache::bound(cache);
        }
        Opened::Plain(Box::new(stored))
    }
}

impl Source<'_> {''',1)
open(C+'workload.rs','w').write(s)
# a new volume takes the image's directory as its root
p='crates/libos/src/fs/init.rs'
sub(p,[('''    let backing = Backing::open(number, key, &target).map_err(|error| {''','''    // As with Docker, a new volume belongs to whom the image's directory belongs to.
    make_directories(context, &wanted.target, 0o755)?;
    let below = Walk::new(Caller::KERNEL, context).find(&wanted.target, Follow::Yes)?;
    let below = below.inode().metadata();
    let backing = Backing::open(number, key, &target, &below).map_err(|error| {''')])
p='crates/libos/src/fs/memfs/volume.rs'
sub(p,[('''        target: &str,
    ) ->''','''        target: &str,
        below: &Metadata,
    ) ->'''),('''            mode: FileType::Directory.mode() | 0o755,
            links: 2,
''','''            mode: FileType::Directory.mode() | below.mode & 0o7777,
            uid: below.uid,
            gid: below.gid,
            links: 2,
'''),('    /// Opens the volume of this number, or makes it where the host has none.','    /// Opens the volume of this number, or makes it where the host has none; then its root directory\n    /// has the owner and mode of the directory `below`, which it hides.'),
('use crate::fs::inode::{FileType, Inode, Time};','use crate::fs::inode::{FileType, Inode, Metadata, Time};')])
