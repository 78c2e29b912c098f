/* Virtio over memory-mapped registers, version 2 (OASIS Virtio 1.2, 4.2).
 *
 * A queue is memory that both sides share. The guest describes buffers in its table,
 * offers a chain of them by the index of the first, and writes to the notify register.
 * The VMM processes the chain and lists it as used. */
#include "machine.h"

enum {
	REG_MAGIC = 0x00, REG_VERSION = 0x04, REG_DEVICE = 0x08,
	REG_DEVICE_FEATURES = 0x10, REG_DEVICE_FEATURES_SEL = 0x14, REG_DRIVER_FEATURES = 0x20, REG_DRIVER_FEATURES_SEL = 0x24,
	REG_QUEUE_SEL = 0x30, REG_QUEUE_SIZE = 0x38, REG_QUEUE_READY = 0x44, REG_NOTIFY = 0x50,
	REG_STATUS = 0x70, REG_QUEUE_TABLE = 0x80, REG_QUEUE_OFFERED = 0x90, REG_QUEUE_USED = 0xa0, REG_CONFIG = 0x100,
};
enum { MAGIC = 0x74726976 /* "virt" */, STATUS_SEEN = 1, STATUS_DRIVER = 2, STATUS_READY = 4, STATUS_FEATURES_OK = 8 };

static volatile u32 *reg(u64 base, u32 offset) { return (volatile u32 *)(base + offset); }

u32 device_of(u64 base)
{
	return *reg(base, REG_MAGIC) == MAGIC && *reg(base, REG_VERSION) == 2 ? *reg(base, REG_DEVICE) : 0;
}

u32 config32(u64 base, u32 offset) { return *reg(base, REG_CONFIG + offset); }

static void set_address(u64 base, u32 at, volatile void *memory)
{
	*reg(base, at) = (u32)(u64)memory;
	*reg(base, at + 4) = (u64)memory >> 32;
}

/* The steps of the initialisation are those of the specification. Of the general
 * features the guest negotiates bit 32 only, VIRTIO_F_VERSION_1. */
void device_start(u64 base, u32 features, struct queue *queues, int count)
{
	*reg(base, REG_STATUS) = 0; /* reset */
	*reg(base, REG_STATUS) = STATUS_SEEN;
	*reg(base, REG_STATUS) = STATUS_SEEN | STATUS_DRIVER;
	*reg(base, REG_DRIVER_FEATURES_SEL) = 0;
	*reg(base, REG_DRIVER_FEATURES) = features;
	*reg(base, REG_DRIVER_FEATURES_SEL) = 1;
	*reg(base, REG_DRIVER_FEATURES) = 1;
	*reg(base, REG_STATUS) = STATUS_SEEN | STATUS_DRIVER | STATUS_FEATURES_OK;
	for (int i = 0; i < count; i++) {
		*reg(base, REG_QUEUE_SEL) = i;
		*reg(base, REG_QUEUE_SIZE) = QUEUE_SIZE;
		set_address(base, REG_QUEUE_TABLE, queues[i].table);
		set_address(base, REG_QUEUE_OFFERED, &queues[i].offered);
		set_address(base, REG_QUEUE_USED, &queues[i].used);
		*reg(base, REG_QUEUE_READY) = 1;
	}
	*reg(base, REG_STATUS) = STATUS_SEEN | STATUS_DRIVER | STATUS_FEATURES_OK | STATUS_READY;
}

void queue_offer(u64 base, struct queue *q, int number, u16 first)
{
	q->offered.ring[q->offered.index % QUEUE_SIZE] = first;
	barrier(); /* the VMM must not see the new index before its entry */
	q->offered.index++;
	barrier();
	*reg(base, REG_NOTIFY) = number;
}

int queue_done(struct queue *q, u32 *id, u32 *length)
{
	if (q->used.index == q->seen)
		return 0;
	barrier();
	*id = q->used.ring[q->seen % QUEUE_SIZE].id;
	*length = q->used.ring[q->seen % QUEUE_SIZE].length;
	q->seen++;
	return 1;
}
