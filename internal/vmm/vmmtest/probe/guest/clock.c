/* The time: channel 2 of the interval timer counts down from 65536 at 1,193,182 Hz,
 * again and again. It is the only clock whose frequency is known without a
 * measurement. */
#include "machine.h"

enum { PORT_COUNTER = 0x42, PORT_MODE = 0x43, PORT_GATE = 0x61, HERTZ = 1193182 };

static u16 last;
static u64 ticks;

static u16 counter(void)
{
	out8(PORT_MODE, 0x80); /* latch channel 2's count, so that both bytes are of one moment */
	u16 low = in8(PORT_COUNTER);
	return low | in8(PORT_COUNTER) << 8;
}

void clock_start(void)
{
	out8(PORT_GATE, 1);
	out8(PORT_MODE, 0xb4); /* channel 2, both bytes, start again at zero */
	out8(PORT_COUNTER, 0);
	out8(PORT_COUNTER, 0);
	last = counter();
	ticks = 0;
}

u64 clock_ms(void)
{
	u16 now = counter();
	ticks += (u16)(last - now);
	last = now;
	return ticks * 1000 / HERTZ;
}
