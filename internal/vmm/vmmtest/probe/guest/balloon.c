/* The balloon, of which only the side is used by which a guest tells how much
 * memory it has: a list of numbered figures in a buffer that the device keeps
 * until it wants to be told anew. It is never blown up. With "probe.kills=" on its
 * command line it also tells what only Linux 6.12 and newer do: how many programs
 * were ended for want of memory. */
#include "machine.h"

enum { INFLATE, DEFLATE, STATISTICS, QUEUES, FEATURE_STATISTICS = 1 << 1 };
enum figure { FREE = 4, TOTAL = 5, AVAILABLE = 6, KILLS = 10 };

static u64 device;
static struct queue queues[QUEUES];
static struct { u16 figure; u64 bytes; } __attribute__((packed)) told[4];

static void tell(void)
{
	const char *kills = argument("probe.kills=");
	told[0].figure = FREE;
	told[0].bytes = memory_available();
	told[1].figure = TOTAL;
	told[1].bytes = MEMORY;
	told[2].figure = AVAILABLE;
	told[2].bytes = memory_available();
	told[3].figure = KILLS;
	told[3].bytes = to_number(kills);
	u32 count = *kills ? 4 : 3;
	queues[STATISTICS].table[0] = (struct descriptor){ (u64)told, count * sizeof told[0], 0, 0 };
	queue_offer(device, &queues[STATISTICS], STATISTICS, 0);
}

void balloon_add(u64 base)
{
	device = base;
	device_start(base, FEATURE_STATISTICS, queues, QUEUES);
	tell();
}

void balloon_poll(void)
{
	u32 id, unused;
	if (device && queue_done(&queues[STATISTICS], &id, &unused))
		tell();
}
