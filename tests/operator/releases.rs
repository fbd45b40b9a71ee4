//! Two releases in one cluster: each would act on every Backup. One of them acts, and the other says whom it found.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    support::{
        eventually,
        operator::{Home, Operator},
    },
    world::{PATIENCE, World, metric},
};

const OTHER: &str = "tidemark-other";

/// What /readyz answers: the last line.
async fn readyz(operator: &Operator) -> Option<String> {
    let mut stream = tokio::net::TcpStream::connect(operator.http()?).await.ok()?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await.ok()?;
    text.lines().last().map(str::to_owned)
}

async fn leads(operator: &Operator) -> bool {
    metric(operator, "tidemark_leader").await == Some(1.0)
}

async fn until_it_leads(operator: &Operator) {
    eventually("it leads", PATIENCE, || async {
        if leads(operator).await { Ok(()) } else { Err(format!("{:?}\n{}", readyz(operator).await, operator.tail())) }
    })
    .await;
}

/// It does nothing, and names the other's Lease and holder.
async fn until_it_refuses(operator: &Operator, namespace: &str, holder: &str) {
    eventually("it refuses", PATIENCE, || async {
        let said = readyz(operator).await.unwrap_or_default();
        let names = said.contains(&format!("{namespace}/tidemark-operator")) && said.contains(holder);
        if names && !leads(operator).await { Ok(()) } else { Err(format!("{said}\n{}", operator.tail())) }
    })
    .await;
}

#[tokio::test]
async fn law_8_of_two_releases_one_acts_and_the_other_says_whom_it_found() {
    let world = World::new().await;
    world.plane.apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {OTHER}}}}}")).await;
    let of_ours = |home, name| Operator::start_in(&world.plane, home, &["--identity", name]);
    let of_other = |name| Operator::start_in(&world.plane, Home::new(), &["--namespace", OTHER, "--identity", name]);
    let mut first = of_ours(world.home.clone(), "first");
    until_it_leads(&first).await;
    let second = of_other("second");
    until_it_refuses(&second, "tidemark-system", "first").await;
    assert!(leads(&first).await, "{}", first.tail());
    // The first is uninstalled: its Lease is given back, and the second goes on by itself.
    assert!(first.terminate().success(), "{}", first.tail());
    until_it_leads(&second).await;
    let third = of_ours(world.home.clone(), "third");
    until_it_refuses(&third, OTHER, "second").await;
    drop((second, third));

    // Started at the same moment, after the Leases of both are as good as free.
    for (namespace, lease) in [("tidemark-system", "tidemark-operator"), (OTHER, "tidemark-operator")] {
        world.plane.kubectl(&["delete", "lease", lease, "-n", namespace, "--ignore-not-found"]).await;
    }
    let (one, two) = (of_ours(world.home.clone(), "one"), of_other("two"));
    eventually("one of them leads", PATIENCE, || async {
        let (a, b) = (leads(&one).await, leads(&two).await);
        assert!(!(a && b), "both act\n{}\n{}", one.tail(), two.tail());
        if a || b { Ok(()) } else { Err(format!("{}\n{}", one.tail(), two.tail())) }
    })
    .await;
    let (loser, namespace, holder) =
        if leads(&one).await { (&two, "tidemark-system", "one") } else { (&one, OTHER, "two") };
    until_it_refuses(loser, namespace, holder).await;
    world.end(&[&one, &two]).await;
}
