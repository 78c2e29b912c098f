/* The balloon, which this guest only uses to report its memory: a list of numbered
 * figures in a buffer that the device keeps until it wants a new report. It is never
 * inflated. With "probe.kills=" on its command line the guest also reports what only
 * Linux 6.12 and newer do: the number of processes that were killed for lack of
 * memory. */
#include "machine.h"

enum { INFLATE, DEFLATE, STATISTICS, QUEUES, FEATURE_STATISTICS = 1 << 1 };
enum figure { FREE = 4, TOTAL = 5, AVAILABLE = 6, KILLS = 10 };

static u64 device;
static struct queue queues[QUEUES];
static struct { u16 figure; u64 bytes; } __attribute__((packed)) figures[4];

static void report(void)
{
	const char *kills = argument("probe.kills=");
	figures[0].figure = FREE;
	figures[0].bytes = memory_available();
	figures[1].figure = TOTAL;
	figures[1].bytes = MEMORY;
	figures[2].figure = AVAILABLE;
	figures[2].bytes = memory_available();
	figures[3].figure = KILLS;
	figures[3].bytes = to_number(kills);
	u32 count = *kills ? 4 : 3;
	queues[STATISTICS].table[0] = (struct descriptor){ (u64)figures, count * sizeof figures[0], 0, 0 };
	queue_offer(device, &queues[STATISTICS], STATISTICS, 0);
}

void balloon_add(u64 base)
{
	device = base;
	device_start(base, FEATURE_STATISTICS, queues, QUEUES);
	report();
}

void balloon_poll(void)
{
	u32 id, unused;
	if (device && queue_done(&queues[STATISTICS], &id, &unused))
		report();
}
