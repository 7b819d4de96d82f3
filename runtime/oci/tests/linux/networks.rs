//! Pods on a bridge, inside a namespace that stands for the node.

use std::net::Ipv4Addr;

use coracle_oci::network::{self, Bridge, Subnet};
use nix::sched::{CloneFlags, unshare};

use crate::host::Host;

/// Runs a test on a thread whose network is its own.
fn on_a_node<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("this test needs root");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    thread.join().unwrap();
}

#[test]
fn pods_reach_each_other_and_addresses_of_the_node() {
    on_a_node(|| async {
        let host = Host::new().await;
        let subnet: Subnet = "10.9.1.0/24".parse().unwrap();
        let bridge = Bridge::of_node(subnet, "10.9.0.0/16".parse().unwrap());
        for _ in 0..2 {
            network::set_up(&bridge).await.unwrap();
        }
        let pods = [format!("one-{}", std::process::id()), format!("two-{}", std::process::id())];
        for (pod, last) in pods.iter().zip([2, 3]) {
            host.pod(pod, [10, 9, 1, last]).await;
            let address = Ipv4Addr::new(10, 9, 1, last);
            network::plug(&bridge, pod, &host.engine.netns(pod), address).await.unwrap();
            let c = format!("c-{pod}");
            host.create(pod, &c, &["/bin/sleep", "1000"], |_| ()).await.unwrap();
            host.engine.start(&c).await.unwrap();
        }
        // A wasm pod's address is the node's own.
        let wasm = Ipv4Addr::new(10, 9, 1, 9);
        for _ in 0..2 {
            network::add_local(&bridge, wasm).await.unwrap();
        }
        let listener = std::net::TcpListener::bind((wasm, 80)).unwrap();
        let answering = listener.try_clone().unwrap();
        std::thread::spawn(move || answering.accept().map(drop));
        let c = format!("c-{}", pods[0]);
        for (script, fine) in [
            ("ping -c 1 -W 2 10.9.1.3", true),
            ("ping -c 1 -W 2 10.9.1.1", true),
            ("nc -w 2 10.9.1.9 80 < /dev/null", true),
            ("ping -c 1 -W 1 10.9.1.77", false),
            ("ip route | cat; ip route | grep -q 'default via 10.9.1.1'", true),
        ] {
            let command = ["/bin/sh", "-c", script].map(str::to_owned);
            let said = host.exec_sync(&c, &command, None).await.unwrap().unwrap();
            assert_eq!(said.exit_code == 0, fine, "{script}: {said:?}");
        }
        drop(listener);
        for _ in 0..2 {
            network::remove_local(&bridge, wasm).await.unwrap();
            network::unplug(&pods[0]).await.unwrap();
        }
        assert!(std::net::TcpListener::bind((wasm, 80)).is_err());
        host.finish().await;
    });
}
