//! Database servers: made by their own tools, driven by their own clients (which run on this
//! machine, from the same image), loaded, crashed, recovered, stopped.

use std::time::{Duration, Instant};

use bulla_test_apps::{Program, Server, Side, free_port, image, sides};

/// A client program of an image, run natively in a chroot.
struct Client {
    rootfs: String,
    path: &'static str,
}

impl Client {
    fn new(name: &'static str, path: &'static str) -> Client {
        Client {
            rootfs: image(name).rootfs.display().to_string(),
            path,
        }
    }

    fn run(&self, server: &Server, argv: &[&str]) -> String {
        let mut words = vec!["chroot", &self.rootfs, "env", "-i", "LC_ALL=C", self.path];
        words.extend(argv);
        server.client(&words)
    }
}

struct Postgres {
    server: Server,
    client: Client,
    port: String,
}

/// Makes a cluster as the user `postgres` and becomes the server. Parallel plans are made as cheap
/// as they can be, so that small tables have them too.
const POSTGRES: &str = r#"set -e
    export PATH=/usr/lib/postgresql/15/bin:$PATH PGDATA=/tmp/data LC_ALL=C
    mkdir $PGDATA; chown postgres $PGDATA; cd /tmp
    as="setpriv --reuid=postgres --regid=postgres --clear-groups"
    $as initdb --auth=trust --no-sync --no-instructions --data-checksums > /tmp/initdb.log 2>&1 ||
        { cat /tmp/initdb.log; exit 1; }
    cat >> $PGDATA/postgresql.conf <<END
port=$0
listen_addresses='127.0.0.1'
unix_socket_directories=''
shared_buffers=32MB
max_parallel_workers_per_gather=3
min_parallel_table_scan_size=0
parallel_setup_cost=0
parallel_tuple_cost=0
END
    exec $as postgres"#;

impl Postgres {
    fn start(side: Side) -> Postgres {
        let port = free_port();
        let text = port.to_string();
        let server = Program::new("postgresql", &["bash", "-c", POSTGRES, &text])
            .limit(120)
            .serve(side, port);
        let postgres = Postgres {
            server,
            client: Client::new(
                "postgresql",
                "PATH=/usr/lib/postgresql/15/bin:/usr/bin:/bin",
            ),
            port: text,
        };
        postgres.wait_until_ready();
        postgres
    }

    fn wait_until_ready(&self) {
        // It may listen before it takes queries.
        let script = "for i in $(seq 600); do
            psql -h 127.0.0.1 -p $0 -U postgres -Atc 'select 1' 2> /tmp/err && exit; sleep 0.1
            done; cat /tmp/err; exit 1";
        assert_eq!(
            self.client
                .run(&self.server, &["bash", "-c", script, &self.port]),
            "1\n"
        );
    }

    fn query(&self, sql: &str) -> String {
        let options = ["psql", "-h", "127.0.0.1", "-p", &self.port];
        let more = ["-U", "postgres", "-v", "ON_ERROR_STOP=1", "-Atc", sql];
        self.client
            .run(&self.server, &[&options[..], &more[..]].concat())
    }

    fn pgbench(&self, options: &[&str]) -> String {
        let mut argv = vec!["pgbench", "-h", "127.0.0.1", "-p", &self.port, "-U"];
        argv.push("postgres");
        argv.extend(options);
        argv.push("postgres");
        self.client.run(&self.server, &argv)
    }
}

/// The number that follows `label` in pgbench's report.
fn number(report: &str, label: &str) -> u64 {
    let line = report.lines().find_map(|line| line.strip_prefix(label));
    let digits = line.and_then(|rest| rest.split_whitespace().next());
    let digits = digits.and_then(|text| text.split('/').next());
    digits
        .and_then(|text| text.parse().ok())
        .unwrap_or_else(|| panic!("no {label:?} in {report}"))
}

fn postgres(seconds: &str) {
    let mut answers = Vec::new();
    for side in sides() {
        let postgres = Postgres::start(side);
        postgres.pgbench(&["-i", "-q", "-s", "2"]);
        let mixed = postgres.pgbench(&["-c", "8", "-T", seconds]);
        println!("postgres {side:?}: {mixed}");
        let done = number(&mixed, "number of transactions actually processed: ");
        assert_eq!(number(&mixed, "number of failed transactions: "), 0);
        assert!(done >= 20, "{mixed}");
        let select = postgres.pgbench(&["-n", "-c", "8", "-S", "-T", seconds]);
        println!("postgres {side:?}: {select}");
        assert_eq!(number(&select, "number of failed transactions: "), 0);
        assert!(number(&select, "number of transactions actually processed: ") >= 100);
        // Every transaction changes one row of each table by the same amount. Some clients may
        // have been cut off after their commit.
        let sums = postgres.query(
            "select (select sum(abalance) from pgbench_accounts)
                = all (select sum(tbalance) from pgbench_tellers
                    union all select sum(bbalance) from pgbench_branches
                    union all select sum(delta) from pgbench_history),
                count(*) from pgbench_history",
        );
        let count = sums.trim().strip_prefix("t|").map(str::parse::<u64>);
        assert!(
            matches!(count, Some(Ok(count)) if (done..=done + 8).contains(&count)),
            "{sums:?} after {done} transactions"
        );
        answers.push((parallel(&postgres), crash(&postgres)));
        let finished = postgres.server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
        let log = finished.stderr;
        for line in [
            "was terminated by signal 9: Killed",
            "all server processes terminated; reinitializing",
            "automatic recovery in progress",
            "database system is shut down",
        ] {
            assert!(log.contains(line), "{side:?}: no {line:?} in {log}");
        }
    }
    assert!(
        answers.windows(2).all(|two| two[0] == two[1]),
        "{answers:?}"
    );
}

/// Queries with parallel workers, which share memory with the leader: results, and the plan with
/// the number of workers that really ran.
fn parallel(postgres: &Postgres) -> String {
    let plan = postgres.query(
        "explain (analyze, costs off, timing off, summary off)
            select count(*), sum(aid) from pgbench_accounts where aid % 3 = 0",
    );
    assert!(plan.contains("Workers Launched: 3"), "{plan}");
    let sort = "select sum(a.aid), count(*), max(a.filler) from pgbench_accounts a
        join pgbench_accounts b on a.aid = b.aid where b.aid % 2 = 0";
    let join = postgres.query(&format!(
        "set enable_mergejoin=off; set enable_nestloop=off; {sort}"
    ));
    let plan = postgres.query(&format!(
        "set enable_mergejoin=off; set enable_nestloop=off;
            explain (analyze, costs off, timing off, summary off) {sort}"
    ));
    assert!(plan.contains("Parallel Hash Join"), "{plan}");
    assert!(plan.contains("Workers Launched: 3"), "{plan}");
    let index = postgres.query(
        "set min_parallel_index_scan_size=0; set max_parallel_maintenance_workers=2;
            create index on pgbench_accounts (filler, aid);
            select count(*) from pgbench_accounts where filler < 'a'",
    );
    format!("{join}{index}")
}

/// Kills a backend as the kernel's out-of-memory killer would: the server restarts its processes,
/// recovers from its log, and has everything that was committed.
fn crash(postgres: &Postgres) -> String {
    postgres.query(
        "create table kept as select n, md5(n::text) from generate_series(1, 10000) n;
            update kept set md5 = md5(md5) where n % 2 = 0",
    );
    let before = postgres.query("select sum(hashtext(md5)) from kept");
    // Its own backend: the statement cannot succeed.
    let kill = r"printf '%s\n' 'select pg_backend_pid() as pid \gset' \
            '\set command '\''kill -9 '\'':pid' 'create temporary table output (line text);' \
            'copy output from program :'\''command'\'';' |
        psql -h 127.0.0.1 -p $0 -U postgres -At > /tmp/kill.log 2>&1
        echo ended with $?";
    let ended = postgres
        .client
        .run(&postgres.server, &["bash", "-c", kill, &postgres.port]);
    let end = Instant::now() + Duration::from_secs(30);
    while !postgres.server.output().contains("automatic recovery") {
        assert!(Instant::now() < end, "{}", postgres.server.output());
        std::thread::sleep(Duration::from_millis(50));
    }
    postgres.wait_until_ready();
    let after = postgres.query("select sum(hashtext(md5)) from kept");
    assert_eq!(before, after);
    format!("{ended}{after}")
}

#[test]
fn postgresql_under_load_in_parallel_and_after_a_crash() {
    postgres("4");
}

#[test]
#[ignore = "takes minutes: the load runs for as long as the issue asks"]
fn postgresql_under_long_load() {
    postgres("30");
}

/// Makes a database and runs the server as a child; kills it whenever a client writes /tmp/data/kill,
/// and starts it again after that, as a container's restart policy would.
const MARIADB: &str = r#"set -e
    cd /tmp; mkdir data; chown mysql data
    mariadb-install-db --no-defaults --user=mysql --datadir=/tmp/data --skip-test-db \
        --auth-root-authentication-method=normal > install.log 2>&1 || { cat install.log; exit 1; }
    trap 'kill $pid' TERM
    while :; do
        mariadbd --no-defaults --user=mysql --datadir=/tmp/data --port=$0 --bind-address=127.0.0.1 \
            --socket=/tmp/m.sock --secure-file-priv= --innodb-buffer-pool-size=64M \
            --innodb-log-file-size=16M --max-connections=40 & pid=$!
        while kill -0 $pid 2> /dev/null; do
            if [ -e data/kill ]; then rm data/kill; kill -KILL $pid; fi
            sleep 0.05
        done
        wait $pid && code=0 || code=$?
        echo "mariadbd ended with $code"
        [ $code = 137 ] || exit $code
    done"#;

struct Mariadb {
    server: Server,
    client: Client,
    port: String,
}

impl Mariadb {
    fn start(side: Side) -> Mariadb {
        let port = free_port();
        let text = port.to_string();
        let server = Program::new("mariadb", &["bash", "-c", MARIADB, &text])
            .limit(180)
            .serve(side, port);
        let mariadb = Mariadb {
            server,
            client: Client::new("mariadb", "PATH=/usr/bin:/bin"),
            port: text,
        };
        mariadb.wait_until_ready();
        mariadb
    }

    fn wait_until_ready(&self) {
        let script = "for i in $(seq 600); do
            mariadb --no-defaults -h 127.0.0.1 -P $0 -u root -NBe 'select 1' 2> /tmp/err && exit
            sleep 0.1
            done; cat /tmp/err; exit 1";
        let argv = ["bash", "-c", script, &self.port];
        assert_eq!(self.client.run(&self.server, &argv), "1\n");
    }

    fn query(&self, sql: &str) -> String {
        let argv = [
            "mariadb",
            "--no-defaults",
            "-h",
            "127.0.0.1",
            "-P",
            &self.port,
        ];
        let argv = [&argv[..], &["-u", "root", "-NBe", sql]].concat();
        self.client.run(&self.server, &argv)
    }

    /// Eight clients that move money between accounts, each `rounds` times, and write down what
    /// they have been told is committed. `kill`: the server dies while they do so.
    fn transfers(&self, rounds: u32, kill: &str) -> u64 {
        const CLIENTS: &str = r#"rm -rf /tmp/c; mkdir /tmp/c; cd /tmp/c
            for c in 1 2 3 4 5 6 7 8; do (
                for n in $(seq $1); do
                    a=$((1 + (c * 7 + n * 13) % 100)); b=$((1 + (c * 11 + n * 29) % 100))
                    # In one order, so that they do not end in deadlocks.
                    [ $a -lt $b ] || { t=$a; a=$b; b=$t; }
                    echo "start transaction; update bank.accounts set amount = amount - $n where id = $a;
                        update bank.accounts set amount = amount + $n where id = $b;
                        insert into bank.history values ($c, $n, $2); commit; select '$c-$n';"
                done | mariadb --no-defaults --unbuffered -h 127.0.0.1 -P $0 -u root -NB > $c 2> $c.err
            ) & done
            if [ $2 = 1 ]; then
                for i in $(seq 600); do [ $(cat [1-8] | wc -l) -ge 40 ] && break; sleep 0.05; done
                mariadb --no-defaults -h 127.0.0.1 -P $0 -u root -e "select 1 into outfile '/tmp/data/kill'"
            fi
            wait; cat [1-8] | wc -l; cat *.err >&2"#;
        let rounds = rounds.to_string();
        let argv = ["bash", "-c", CLIENTS, &self.port, &rounds, kill];
        let output = self.client.run(&self.server, &argv);
        output
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("no count in {output:?}"))
    }
}

fn mariadb(rounds: u32) {
    let mut answers = Vec::new();
    for side in sides() {
        let mariadb = Mariadb::start(side);
        mariadb.query(
            "create database bank; use bank;
                create table accounts (id int primary key, amount bigint) engine=innodb;
                create table history (client int, n int, run int, primary key (run, client, n));
                insert into accounts select seq, 1000 from seq_1_to_100;
                create table words (id int primary key, word varchar(40), key (word));
                insert into words select seq, sha1(seq) from seq_1_to_20000;
                create fulltext index f on words (word)",
        );
        let sums = "select sum(amount) from bank.accounts";
        let done = mariadb.transfers(rounds, "0");
        assert_eq!(done, u64::from(rounds) * 8);
        assert_eq!(mariadb.query(sums), "100000\n");
        let kept = mariadb.query("select count(*) from bank.history where run = 0");
        assert_eq!(kept.trim().parse(), Ok(done));
        let answer = mariadb.query(
            "select count(*), sum(length(word)), max(word) from bank.words where word like 'a%';
                select count(*) from bank.words a join bank.words b on a.word > b.word and a.id < 200
                where b.id < 400;
                select word from bank.words where match (word) against (sha1(77));
                check table bank.words, bank.accounts extended",
        );
        // While all eight write: what clients were told is there after the crash, and no half of a
        // transfer.
        let told = mariadb.transfers(1_000_000, "1");
        mariadb.wait_until_ready();
        assert_eq!(mariadb.query(sums), "100000\n");
        let kept = mariadb.query("select count(*) from bank.history where run = 1");
        let kept: u64 = kept.trim().parse().unwrap_or(0);
        assert!(
            (told..=told + 8).contains(&kept),
            "{side:?}: {kept} kept of {told}"
        );
        let checked = mariadb.query("check table bank.words, bank.accounts, bank.history extended");
        assert_eq!(checked.matches("OK").count(), 3, "{checked}");
        answers.push(answer);
        let finished = mariadb.server.stop();
        assert_eq!(finished.code, Some(0), "{finished}");
        let ends: Vec<&str> = finished.stdout.lines().collect();
        assert_eq!(
            ends,
            ["mariadbd ended with 137", "mariadbd ended with 0"],
            "{finished}"
        );
        let recovered = finished.stderr.contains("Starting crash recovery");
        assert!(recovered, "{side:?}: {}", finished.stderr);
        println!("mariadb {side:?}: {done} transfers, {told} before the crash");
    }
    assert!(
        answers.windows(2).all(|two| two[0] == two[1]),
        "{answers:?}"
    );
}

#[test]
#[ignore = "takes minutes: makes a large image, and the database loads and recovers"]
fn mariadb_under_load_and_after_a_crash() {
    mariadb(100);
}
