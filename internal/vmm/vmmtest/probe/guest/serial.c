/* The serial port: a 16550 at ports 0x3f8 to 0x3ff. The VMM's needs no set-up
 * and is always ready to send. */
#include "machine.h"

enum { PORT_DATA = 0x3f8, PORT_STATUS = 0x3fd, STATUS_HAS_DATA = 1 };

int heard(void) { return in8(PORT_STATUS) & STATUS_HAS_DATA ? in8(PORT_DATA) : -1; }

void say_bytes(const char *s, u64 n)
{
	while (n--)
		out8(PORT_DATA, *s++);
}

void say(const char *s) { say_bytes(s, length(s)); }

void say_number(u64 n)
{
	char digits[20];
	int at = sizeof digits;
	do
		digits[--at] = '0' + n % 10;
	while (n /= 10);
	say_bytes(digits + at, sizeof digits - at);
}

void say_hex(const u8 *bytes, u64 n)
{
	static const char digits[] = "0123456789abcdef";
	for (u64 i = 0; i < n; i++) {
		out8(PORT_DATA, digits[bytes[i] >> 4]);
		out8(PORT_DATA, digits[bytes[i] & 15]);
	}
}
