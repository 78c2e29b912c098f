package network_test

import (
	"testing"

	"github.com/hatchvm/hatch/internal/network"
)

func TestParsePrefix(t *testing.T) {
	for text, want := range map[string]string{
		"192.0.2.77/24": "192.0.2.0/24", "192.0.2.1": "192.0.2.1/32", "2001:db8::7/32": "2001:db8::/32", "::1": "::1/128", "0.0.0.0/0": "0.0.0.0/0",
		"::ffff:192.0.2.77": "192.0.2.77/32", "::ffff:192.0.2.77/120": "192.0.2.0/24",
		"": "", "x": "", "192.0.2.0/33": "", "192.0.2.0/-1": "", "fe80::1%eth0": "", "::ffff:192.0.2.0/95": "", "192.0.2.1/24 ": "",
	} {
		got, err := network.ParsePrefix(text)
		if (err == nil) != (want != "") || err == nil && got.String() != want {
			t.Errorf("%q: %v, %v, want %q", text, got, err, want)
		}
	}
}
