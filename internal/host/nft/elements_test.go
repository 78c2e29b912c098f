package nft

import (
	"net/netip"
	"slices"
	"testing"
)

func TestSpans(t *testing.T) {
	cases := map[string]struct {
		prefixes []netip.Prefix
		want     []span
	}{
		"none":       {nil, nil},
		"one":        {prefixes("10.0.0.0/8"), []span{{0x0a000000, 0x0affffff}}},
		"unmasked":   {prefixes("10.1.2.3/8"), []span{{0x0a000000, 0x0affffff}}},
		"nested":     {prefixes("10.1.0.0/16", "10.0.0.0/8"), []span{{0x0a000000, 0x0affffff}}},
		"same":       {prefixes("10.0.0.0/8", "10.0.0.0/8"), []span{{0x0a000000, 0x0affffff}}},
		"touching":   {prefixes("10.0.0.128/25", "10.0.0.0/25"), []span{{0x0a000000, 0x0a0000ff}}},
		"apart":      {prefixes("10.0.0.2/32", "10.0.0.0/32"), []span{{0x0a000000, 0x0a000000}, {0x0a000002, 0x0a000002}}},
		"everything": {prefixes("0.0.0.0/0", "255.255.255.255/32"), []span{{0, 0xffffffff}}},
		"IPv6":       {prefixes("2001:db8::/32"), nil},
		"invalid":    {[]netip.Prefix{{}}, nil},
	}
	for name, c := range cases {
		if got := spans(c.prefixes); !slices.Equal(got, c.want) {
			t.Errorf("%s: got %x, want %x", name, got, c.want)
		}
	}
}

func TestIntervalsEndBeyondTheLastAddress(t *testing.T) {
	es := intervals(prefixes("10.0.0.0/8", "240.0.0.0/4"))
	if len(es) != 3 || !es[1].IntervalEnd || es[1].Key[0] != 11 || es[2].IntervalEnd {
		t.Errorf("got %+v", es)
	}
}

func TestRefusedCoversWhatIsNotTheInternet(t *testing.T) {
	contains := func(a string) bool {
		return slices.ContainsFunc(refused, func(p netip.Prefix) bool { return p.Contains(netip.MustParseAddr(a)) })
	}
	for _, a := range []string{
		"0.0.0.0", "10.0.0.1", "100.64.0.1", "100.127.255.255", "127.0.0.1", "169.254.169.254", "172.16.0.1",
		"172.31.255.255", "192.168.0.1", "198.19.255.255", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
	} {
		if !contains(a) {
			t.Errorf("guests may reach %s", a)
		}
	}
	for _, a := range []string{"1.1.1.1", "100.63.255.255", "100.128.0.0", "172.15.0.1", "172.32.0.1", "192.169.0.1", "198.51.100.1", "223.255.255.255"} {
		if contains(a) {
			t.Errorf("guests may not reach %s", a)
		}
	}
}
