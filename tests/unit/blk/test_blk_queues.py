"""The block device (5.2): several queues (5.2.2), and the device's life."""

from tests.unit.blk.bench import (
    IN,
    NUM_QUEUES,
    OK,
    OUT,
    SECTOR,
    SECTORS,
    Bench,
    FakeDisk,
    Reply,
    bench_of,
    pattern,
)
from virtiopy.devices.blk import BlkFeature
from virtiopy.spec import has_feature

# Several queues (5.2.2)


def test_several_queues_are_offered_and_each_is_served(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=4) as bench:
        bench.driver.start()
        assert has_feature(bench.driver.features, BlkFeature.VIRTIO_BLK_F_MQ)
        assert bench.config(NUM_QUEUES) == len(bench.driver.queues) == 4
        for queue in (3, 1, 0, 2):
            reply = bench.request(IN, queue, room=SECTOR, queue=queue)
            assert reply.data == pattern(SECTORS)[queue * SECTOR : (queue + 1) * SECTOR]


def test_what_one_queue_wrote_another_reads(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=4) as bench:
        bench.driver.start()
        bench.request(OUT, 5, pattern(1, seed=2), queue=3)
        assert bench.request(IN, 5, room=SECTOR, queue=1).data == pattern(1, seed=2)


def test_two_queues_are_several(disk: FakeDisk) -> None:
    with bench_of(disk, num_queues=2) as bench:
        assert has_feature(bench.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_MQ)


def test_a_single_queue_does_not_offer_multiqueue(faked: Bench) -> None:
    assert not has_feature(faked.driver.offered_features(), BlkFeature.VIRTIO_BLK_F_MQ)


# The device's life


def test_the_device_serves_the_next_driver_after_a_reset(bench: Bench) -> None:
    bench.request(OUT, 0, pattern(1, seed=2))
    bench.driver.start()
    assert bench.request(IN, 0, room=SECTOR) == Reply(SECTOR + 1, pattern(1, seed=2), OK)


def test_closing_the_device_closes_the_disk(faked: Bench, disk: FakeDisk) -> None:
    faked.device.close()
    assert disk.closed
