use parapet_engine::admission::Loads;
use parapet_engine::config::Spill;

use super::*;
use crate::sim::{Faults, Simulator, vllm};

async fn busy(waiting: u64, kv_cache: f64) -> Simulator {
    let vllm = vllm::start(Default::default()).await.unwrap();
    vllm.set_faults(Faults { waiting: Some(waiting), kv_cache: Some(kv_cache), ..Faults::default() }).unwrap();
    vllm
}

async fn watching(urls: &str) -> (Arc<Watches>, watch::Sender<bool>) {
    watching_others(urls, "").await
}

async fn watching_others(vllm: &str, others: &str) -> (Arc<Watches>, watch::Sender<bool>) {
    let watch = Arc::new(Watches::new(vllm, others).unwrap());
    let (stop, stopping) = watch::channel(false);
    tokio::spawn(Arc::clone(&watch).run(stopping));
    (watch, stop)
}

async fn until(watch: &Watches, expected: &str) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while watch.report() != expected {
        assert!(Instant::now() < deadline, "{:?} never became {expected:?}", watch.report());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn the_least_busy_replica_speaks_for_the_provider_and_a_silent_one_is_forgotten() {
    let (full, free) = (busy(9, 0.95).await, busy(1, 0.5).await);
    let (watch, _stop) = watching(&format!("{}/v1, {}", full.url(), free.url())).await;
    until(&watch, "vllm 1 500\n").await;
    free.set_faults(Faults { waiting: Some(12), kv_cache: Some(0.99), ..Faults::default() }).unwrap();
    until(&watch, "vllm 9 950\n").await;
    full.stop().await;
    until(&watch, "vllm 12 990\n").await;
    free.stop().await;
    until(&watch, "").await;
}

#[tokio::test]
async fn every_provider_speaks_for_itself() {
    let (vllm, one, two) = (busy(2, 0.2).await, busy(7, 0.5).await, busy(5, 0.7).await);
    let others = format!("other={},{} silent=http://127.0.0.1:1", one.url(), two.url());
    let (watch, _stop) = watching_others(&vllm.url(), &others).await;
    until(&watch, "vllm 2 200\nother 5 500\n").await;
    let mut loads = Loads::default();
    loads.hear(&watch.report(), 0);
    let spill = Spill { waiting: Some(5), kv_cache: None };
    assert!(
        loads.is_full("other", &spill, 0) && !loads.is_full("vllm", &spill, 0) && !loads.is_full("silent", &spill, 0)
    );
}

#[tokio::test]
async fn nobody_is_polled_before_somebody_asks() {
    let vllm = busy(1, 0.1).await;
    let (watch, _stop) = watching(&vllm.url()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(vllm.requests().is_empty());
    until(&watch, "vllm 1 100\n").await;
}

#[tokio::test]
async fn the_gateway_reads_what_is_reported() {
    let vllm = busy(5, 0.9).await;
    let (watch, _stop) = watching(&vllm.url()).await;
    until(&watch, "vllm 5 900\n").await;
    let mut loads = Loads::default();
    loads.hear(&watch.report(), 0);
    assert!(loads.is_full("vllm", &Spill { waiting: Some(5), kv_cache: None }, 0));
}

#[test]
fn a_url_that_is_none_is_refused_without_being_repeated() {
    for (vllm, others, told) in [
        ("http://user:s3cret@[", "", "VLLM_URL"),
        ("", "other=http://user:s3cret@[", "PARAPET_LOAD_URLS: `other`"),
        ("", "http://user:s3cret@a", "write it like NAME="),
        ("", "=http://a", "write it like NAME="),
        ("", "a=http://a a=http://b", "`a` stands twice"),
        ("", "vllm=http://a", "`vllm` stands twice"),
    ] {
        let error = format!("{:#}", Watches::new(vllm, others).unwrap_err());
        assert!(error.contains(told) && !error.contains("s3cret"), "{error}");
    }
    let many: Vec<String> = (0..64).map(|index| format!("p{index}=http://a")).collect();
    assert!(Watches::new("", &many.join(" ")).is_err());
    assert!(Watches::new("", "").unwrap().report().is_empty());
}
