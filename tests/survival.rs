//! Real processes on real data that are killed, stopped, cut off and starved: whatever happens, training comes to the
//! weights of an undisturbed run, to the bit.
//!
//! The data are the example's: 569 patients, two parties. `SPNN_KILLS=400` kills that many times instead of a few.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "a test panics")]

mod kit;

use kit::proxy::{Proxy, Treatment};
use kit::{
    CONFIGURATION, DATA, DONE, Ended, Numbers, PEER_GONE, Process, STORAGE, Stage, all_end, arg, repository, spnn_ok,
    table,
};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Three epochs of the example, of fifteen batches each, with a checkpoint every few of them.
fn stage(first_layer: &str) -> Stage {
    let mut stage = Stage::new(2, 1);
    for (party, file) in [("party-0", "clinic.csv"), ("party-1", "laboratory.csv")] {
        fs::copy(repository(&format!("examples/breast_cancer/{file}")), stage.path(party).join("data.csv")).unwrap();
    }
    stage.config("party-0")["data"].as_table_mut().unwrap().insert("label".into(), "malignant".into());
    stage.session.insert("first_layer".into(), first_layer.into());
    stage.session.insert("paillier".into(), table("key_bits = 2048\nallow_112_bit = true").into());
    let train = "epochs = 3\nbatch_size = 32\noptimizer = { kind = \"adam\", learning_rate = 0.01 }";
    stage.session.insert("train".into(), table(train).into());
    stage.config("server").insert("checkpoint_every_s".into(), 0.005.into());
    stage.everywhere("allow_unprotected", true);
    stage.everywhere("rejoin_timeout_s", 25.0);
    stage.everywhere("transport", table("idle_timeout_s = 1.0"));
    stage
}

/// The same, for hours.
fn long_stage() -> Stage {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 100_000.into();
    stage
}

/// Removes what a run left, but not certificates and data.
fn clear(stage: &Stage) {
    for role in stage.roles() {
        for file in ["incarnation", "model.json", "model.safetensors", "finished", "predictions.csv", "report.json"] {
            let _ = fs::remove_file(stage.path(&role).join(file));
        }
        let _ = fs::remove_dir_all(stage.path(&role).join("checkpoints"));
    }
}

/// Model files by role, and the scores.
fn models(stage: &Stage) -> BTreeMap<String, Vec<u8>> {
    let files = ["server", "party-0", "party-1"].map(|role| format!("{role}/model.safetensors"));
    files
        .into_iter()
        .chain(["party-0/predictions.csv".into()])
        .map(|f| (f.clone(), fs::read(stage.path(&f)).unwrap()))
        .collect()
}

/// Runs to the end without disturbance. How many messages each role sends and receives, and the models.
fn undisturbed(stage: &mut Stage) -> (BTreeMap<String, u64>, BTreeMap<String, Vec<u8>>) {
    let processes = stage.roles().iter().map(|r| stage.start_with(r, &["--log", kit::TRACE])).collect();
    let ended = all_end(processes);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    let count = |e: &Ended| e.said.lines().filter(|l| l.contains("TRACE")).count() as u64;
    stage.keep_ports();
    (ended.iter().map(|(role, e)| (role.clone(), count(e))).collect(), models(stage))
}

fn incarnations(stage: &Stage) -> u64 {
    fs::read_to_string(stage.path("server/incarnation")).unwrap().trim().parse().unwrap()
}

/// Kills a random process at a random message, `kills` times in sessions of their own; each must come to the weights of
/// the undisturbed one. Where the environment says so, as many as it says.
fn survives_kills(first_layer: &str, kills: u64) {
    let kills = std::env::var("SPNN_KILLS").map_or(kills, |n| n.parse().expect("SPNN_KILLS is a number"));
    let mut stage = stage(first_layer);
    let (messages, expected) = undisturbed(&mut stage);
    let roles = stage.roles();
    let mut resumed = 0;
    for seed in 0..kills {
        clear(&stage);
        let mut numbers = Numbers(seed);
        let victim = &roles[(numbers.next() % roles.len() as u64) as usize];
        let at = 1 + numbers.next() % messages[victim];
        let back_after = Duration::from_millis(numbers.next() % 300);
        let what = format!("{first_layer}, seed {seed}: {victim} killed at message {at}");
        let mut processes: Vec<Process> = (roles.iter())
            .map(|role| if role == victim { stage.start_doomed(role, at) } else { stage.start(role) })
            .collect();
        let place = roles.iter().position(|r| r == victim).unwrap();
        let since = Instant::now();
        while processes[place].poll().is_none() {
            assert!(since.elapsed() < kit::PATIENCE, "{what}: it goes on");
            std::thread::sleep(Duration::from_millis(2));
        }
        // It may have come to its end just before.
        if processes[place].poll() != Some(DONE) {
            std::thread::sleep(back_after);
            processes[place] = stage.start(victim);
        }
        let ended = all_end(processes);
        for e in ended.values() {
            assert_eq!(e.code, DONE, "{what}\n{}", e.all_said);
        }
        resumed += u64::from(incarnations(&stage) > 1);
        assert!(models(&stage) == expected, "{what}: other weights");
        assert!(stage.path("coordinator/report.json").exists(), "{what}: no report");
    }
    println!("{first_layer}: {kills} kills, {resumed} sessions that went on from checkpoints");
    assert!(resumed > 0, "no kill interrupted anything");
}

#[test]
fn kills_under_sharing() {
    survives_kills("sharing", 40);
}

#[test]
fn kills_under_beaver() {
    survives_kills("beaver", 40);
}

#[test]
fn kills_in_the_clear() {
    survives_kills("plain", 40);
}

#[test]
fn kills_under_paillier() {
    survives_kills("paillier", 40);
}

/// Parties that reach coordinator and server through proxies.
fn through_proxies(stage: &mut Stage, treatment: Treatment) -> Vec<Proxy> {
    let mut proxies = Vec::new();
    for (seed, party) in (0..).zip(stage.parties()) {
        for (i, listener) in (0..).zip(["coordinator", "server"]) {
            let proxy = Proxy::new(&stage.address(listener), treatment, seed * 10 + i);
            stage.config(&party).insert(listener.into(), proxy.address.to_string().into());
            proxies.push(proxy);
        }
    }
    proxies
}

#[test]
fn a_bad_network_changes_nothing_but_time() {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 1.into();
    stage.everywhere("transport", table("idle_timeout_s = 10.0"));
    stage.everywhere("join_timeout_s", 25.0);
    let (_, expected) = undisturbed(&mut stage);
    clear(&stage);
    let treatment = Treatment {
        lost: 0.1,
        late: Duration::from_millis(100),
        repeated: 0.05,
        overtaking: 0.25,
        rate: Some(12_500_000),
    };
    let proxies = through_proxies(&mut stage, treatment);
    let ended = all_end(stage.start_all());
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(models(&stage) == expected, "other weights");
    let count = |of: fn(&Proxy) -> u64| proxies.iter().map(of).sum::<u64>();
    let passed = count(|p| p.done.passed.load(Ordering::Relaxed));
    let lost = count(|p| p.done.lost.load(Ordering::Relaxed));
    let repeated = count(|p| p.done.repeated.load(Ordering::Relaxed));
    println!("{passed} packets passed, {lost} lost, {repeated} repeated");
    assert!(lost * 20 > passed && repeated * 40 > passed, "the network was not bad");
}

#[test]
fn certificates_are_renewed_while_a_session_runs() {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 40.into();
    let (_, expected) = undisturbed(&mut stage);
    clear(&stage);
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 3/"));
    stage.renew("coordinator", 20);
    processes[0].signal(Signal::SIGHUP);
    processes[0].until(|said| said.contains("read certificate, key, authority or revocation list anew"));
    // A party that is started again shows its new one; nobody has to change a pinned fingerprint.
    let pin = stage.fingerprint("party-1");
    stage.renew("party-1", 20);
    assert_eq!(stage.fingerprint("party-1"), pin);
    let place = stage.roles().iter().position(|r| r == "party-1").unwrap();
    processes[place].kill();
    processes[0].until(|said| said.contains("interrupted"));
    processes[place] = stage.start("party-1");
    let ended = all_end(processes);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(incarnations(&stage) > 1, "nothing was interrupted");
    assert!(models(&stage) == expected, "other weights");
}

#[test]
fn a_partition_heals() {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 40.into();
    let (_, expected) = undisturbed(&mut stage);
    clear(&stage);
    let proxies = through_proxies(&mut stage, Treatment::default());
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 3/"));
    // Party 1 and everyone else, for longer than anyone waits for a sign of life.
    proxies[2..].iter().for_each(|p| p.partition(true));
    processes[0].until(|said| said.contains("interrupted"));
    std::thread::sleep(Duration::from_secs(2));
    proxies[2..].iter().for_each(|p| p.partition(false));
    let ended = all_end(processes);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(incarnations(&stage) > 1, "nothing was interrupted");
    assert!(models(&stage) == expected, "other weights");
}

#[test]
fn a_party_that_hangs_is_named_and_the_others_go() {
    let mut stage = long_stage();
    stage.everywhere("rejoin_timeout_s", 1.0);
    stage.everywhere("peer_timeout_s", 2.0);
    stage.everywhere("transport", table("idle_timeout_s = 30.0"));
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 2/"));
    let late = processes.pop().unwrap();
    late.signal(Signal::SIGSTOP);
    let mut ended = all_end(processes);
    for (role, step) in [("coordinator", ""), ("server", "epoch "), ("party-0", "epoch ")] {
        ended[role].expect(PEER_GONE, &["party-1", step]);
        assert!(ended[role].error().contains("go on from their checkpoints"), "{}", ended[role].said);
    }
    for role in ["server", "party-0"] {
        assert!(fs::read_dir(stage.path(role).join("checkpoints")).unwrap().count() >= 2, "{role} has no checkpoint");
    }
    // It wakes up, finds that the others have gone without it, and says so.
    late.signal(Signal::SIGCONT);
    let late = late.end();
    late.expect(PEER_GONE, &["a peer is gone at party-1"]);
    ended.clear();
}

#[test]
fn starting_order_does_not_matter() {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 1.into();
    let (_, expected) = undisturbed(&mut stage);
    let roles = stage.roles();
    let mut orders = vec![Vec::new()];
    for _ in &roles {
        orders = (orders.iter())
            .flat_map(|o: &Vec<&String>| roles.iter().filter(|r| !o.contains(r)).map(|r| [&o[..], &[r]].concat()))
            .collect();
    }
    assert_eq!(orders.len(), 24);
    for order in orders {
        clear(&stage);
        let ended = all_end(order.iter().map(|role| stage.start(role)).collect());
        ended.values().for_each(|e| e.expect(DONE, &[]));
        assert!(models(&stage) == expected, "other weights: {order:?}");
    }
}

#[test]
fn a_role_that_is_asked_to_stop_stops_and_goes_on_later() {
    for victim in ["coordinator", "server", "party-0", "party-1"] {
        let mut stage = stage("sharing");
        stage.session["train"]["epochs"] = 60.into();
        let (_, expected) = undisturbed(&mut stage);
        clear(&stage);
        let mut processes = stage.start_all();
        processes[0].until(|said| said.contains("epoch 3/"));
        let place = processes.iter().position(|p| p.role == victim).unwrap();
        processes[place].signal(Signal::SIGTERM);
        let asked = Instant::now();
        while processes[place].poll().is_none() {
            assert!(asked.elapsed() < Duration::from_secs(5), "{victim} does not stop");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(processes[place].poll(), Some(DONE), "{}", processes[place].said());
        assert!(processes[place].said().contains("stopped as asked"), "{}", processes[place].said());
        processes[place] = stage.start(victim);
        let ended = all_end(processes);
        ended.values().for_each(|e| e.expect(DONE, &[]));
        assert!(incarnations(&stage) > 1, "{victim} interrupted nothing");
        assert!(models(&stage) == expected, "{victim}: other weights");
    }
}

#[test]
fn a_full_disk_ends_a_role_and_loses_nothing() {
    let mut stage = stage("sharing");
    stage.session["train"]["epochs"] = 40.into();
    let (_, expected) = undisturbed(&mut stage);
    clear(&stage);
    let disk = stage.path("server/checkpoints");
    fs::create_dir(&disk).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"]).arg(&disk).output();
    if !mount.is_ok_and(|o| o.status.success()) {
        println!("SKIPPED: no file system can be mounted here, which takes root");
        return;
    }
    let unmount = Unmount(disk.clone());
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 3/"));
    let ballast = disk.join("ballast");
    let _ = fs::write(&ballast, vec![1; 64 << 10]);
    processes[1].until(|_| false);
    assert_eq!(processes[1].poll(), Some(STORAGE), "{}", processes[1].said());
    let said = processes[1].said();
    assert!(said.contains("No space left") && said.contains("free space on that disk"), "{said}");
    // The others wait for it.
    for other in [0, 2, 3] {
        assert_eq!(processes[other].poll(), None, "{}", processes[other].said());
    }
    fs::remove_file(&ballast).unwrap();
    processes[1] = stage.start("server");
    let ended = all_end(processes);
    ended.values().for_each(|e| e.expect(DONE, &[]));
    assert!(models(&stage) == expected, "other weights");
    drop(unmount);
}

/// Trains for a while, and stops all roles.
fn interrupted() -> Stage {
    let mut stage = long_stage();
    let mut processes = stage.start_all();
    processes[0].until(|said| said.contains("epoch 3/"));
    stage.keep_ports();
    processes.iter().for_each(|p| p.signal(Signal::SIGTERM));
    let ended = all_end(processes);
    // Those that the signal reached last may have found the others gone.
    ended.values().for_each(|e| assert!(e.code == DONE || e.code == PEER_GONE, "{}", e.all_said));
    stage
}

#[test]
fn a_lost_checkpoint_is_named_and_nothing_begins_anew() {
    let stage = interrupted();
    fs::remove_dir_all(stage.path("party-1/checkpoints")).unwrap();
    let ended = all_end(stage.start_all());
    ended["coordinator"].expect(CONFIGURATION, &["no checkpoint is held by all", "party-1 has epoch 1 batch 0"]);
    assert!(ended["coordinator"].said.contains("remove that directory at every role"), "{}", ended["coordinator"].said);
    for role in ["server", "party-0", "party-1"] {
        ended[role].expect(CONFIGURATION, &["coordinator"]);
    }
    assert!(fs::read_dir(stage.path("server/checkpoints")).unwrap().count() > 0);
}

#[test]
fn data_that_changed_meanwhile_are_named() {
    let stage = interrupted();
    let file = stage.path("party-1/data.csv");
    let text = fs::read_to_string(&file).unwrap();
    let (head, tail) = text.rsplit_once(',').unwrap();
    fs::write(&file, format!("{head},1{tail}")).unwrap();
    let ended = all_end(stage.start_all());
    ended["party-1"].expect(DATA, &["data.csv", "other content than when training began"]);
    ended["server"].expect(PEER_GONE, &["party-1"]);
}

#[test]
fn a_simulation_that_was_stopped_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let (whole, stopped) = (directory.path().join("whole"), directory.path().join("stopped"));
    let epochs = ["--epochs", "400", "--checkpoint-every-s", "0.1"];
    spnn_ok(&[&["simulate", "--run-dir", arg(&whole)], &epochs[..]].concat());
    let mut child = Command::new(kit::SPNN)
        .args(["simulate", "--run-dir", arg(&stopped)])
        .args(epochs)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let since = Instant::now();
    while fs::read_dir(stopped.join("server/checkpoints")).map_or(0, Iterator::count) < 3 {
        assert!(since.elapsed() < kit::PATIENCE, "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(DONE));
    assert!(!stopped.join("report.json").exists(), "it had come to its end");
    let said = spnn_ok(&["simulate", "--resume", arg(&stopped)]).out;
    assert!(said.contains("going on from the checkpoint"), "{said}");
    for role in ["server", "party-0", "party-1"] {
        let model = |run: &std::path::Path| fs::read(run.join(role).join("model.safetensors")).unwrap();
        assert!(model(&whole) == model(&stopped), "{role}: other weights");
    }
    let report = |run: &std::path::Path| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(run.join("report.json")).unwrap()).unwrap()
    };
    let (whole, stopped_report) = (report(&whole), report(&stopped));
    assert_eq!(whole["epochs"].as_array().unwrap().len(), 400);
    for (a, b) in whole["epochs"].as_array().unwrap().iter().zip(stopped_report["epochs"].as_array().unwrap()) {
        assert_eq!((&a["train_loss"], &a["test"]), (&b["train_loss"], &b["test"]), "epoch {}", a["epoch"]);
    }
    assert!(stopped_report["resumed_from"].is_object());
    // Nothing is left to resume.
    let said = spnn_ok(&["simulate", "--resume", arg(&stopped)]).out;
    assert!(said.contains("is finished"), "{said}");
}

/// Unmounts when dropped, also when the test fails.
struct Unmount(std::path::PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn one_thread_or_two_give_the_same_bits() {
    for first_layer in ["sharing", "beaver", "paillier"] {
        let mut stage = stage(first_layer);
        let (_, expected) = undisturbed(&mut stage);
        clear(&stage);
        // Processes inherit the one core of the thread that starts them; a pool of threads has one thread then.
        let this_thread = Pid::from_raw(0);
        let cores = sched_getaffinity(this_thread).unwrap();
        let two = (0..CpuSet::count()).filter(|&core| cores.is_set(core).unwrap()).take(2).collect::<Vec<_>>();
        if two.len() < 2 {
            println!("SKIPPED: this machine has one core");
            return;
        }
        let mut one = CpuSet::new();
        one.set(two[0]).unwrap();
        sched_setaffinity(this_thread, &one).unwrap();
        let ended = all_end(stage.start_all());
        sched_setaffinity(this_thread, &cores).unwrap();
        ended.values().for_each(|e| e.expect(DONE, &[]));
        assert!(models(&stage) == expected, "{first_layer}: other weights on one core");
    }
}
