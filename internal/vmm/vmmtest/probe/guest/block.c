/* Disks: a request is a chain of three buffers: the operation, the data, and one byte
 * into which the device writes the result. */
#include "machine.h"

enum { READ = 0, WRITE = 1, WENT_WELL = 0 };

static struct disk { u64 base; struct queue queue; } disks[8];
static int count;

void block_add(u64 base)
{
	if (count == COUNT(disks))
		return;
	struct disk *d = &disks[count++];
	d->base = base;
	device_start(base, 0, &d->queue, 1);
}

int block_count(void) { return count; }

static int request(int disk, u32 type, u64 sector, u8 *data, u32 bytes)
{
	static struct { u32 type, reserved; u64 sector; } what;
	static volatile u8 status;
	struct disk *d = &disks[disk];
	u32 id, written;

	what.type = type;
	what.sector = sector;
	status = 0xff;
	d->queue.table[0] = (struct descriptor){ (u64)&what, sizeof what, DESC_NEXT, 1 };
	d->queue.table[1] = (struct descriptor){ (u64)data, bytes, DESC_NEXT | (type == READ ? DESC_DEVICE_WRITES : 0), 2 };
	d->queue.table[2] = (struct descriptor){ (u64)&status, 1, DESC_DEVICE_WRITES, 0 };
	queue_offer(d->base, &d->queue, 0, 0);
	while (!queue_done(&d->queue, &id, &written))
		;
	return status == WENT_WELL;
}

int block_read(int disk, u64 sector, u8 *to, u32 bytes) { return request(disk, READ, sector, to, bytes); }
int block_write(int disk, u64 sector, u8 *from, u32 bytes) { return request(disk, WRITE, sector, from, bytes); }
