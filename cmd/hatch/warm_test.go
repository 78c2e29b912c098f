package main

import (
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

// warmImage is an image with the next of the guests that are kept.
func (f *fakeServer) warmImage() api.Image {
	image := f.images[0]
	if len(f.warm) > 0 {
		image.Warm = f.warm[:1]
	}
	if len(f.warm) > 1 {
		f.warm = f.warm[1:]
	}
	return image
}

func TestImageWarm(t *testing.T) {
	building := api.WarmGuest{State: api.WarmBuilding, MemMiB: 256}
	ready, failed, other := building, building, building
	ready.State, other.MemMiB = api.WarmReady, 512
	failed.State, failed.Reason = api.WarmFailed, "it did not\x1b[31m become ready"
	for _, tc := range []struct {
		name   string
		flags  string
		stages []api.WarmGuest
		sent   string
		code   int
		says   string
	}{
		{"after two polls", "", []api.WarmGuest{building, building, ready}, "{}", 0, ""},
		{"at once", "", []api.WarmGuest{ready}, "{}", 0, ""},
		{"without waiting", "--no-wait", []api.WarmGuest{building}, "{}", 0, ""},
		{
			"with flags", "--cpus 2 -m 256 --disk 1g --boot-args q --no-network --vmm qemu",
			[]api.WarmGuest{building, ready},
			`{"vcpu_count":2,"mem_mib":256,"disk_mib":1024,"boot_args":"q","enable_network":false,"vmm":"qemu"}`, 0, "",
		},
		{"failed", "", []api.WarmGuest{building, failed}, "{}", exitOwn, "cannot boot a warm guest of debian: it did not become ready"},
		{"replaced", "", []api.WarmGuest{building, other}, "{}", exitOwn, "the server has given up on it"},
		{"none", "", nil, "{}", exitOwn, "the server has given up on it"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFake(t)
			f.warm = tc.stages
			s := newSession(t, f)
			code := s.hatch(append([]string{"image", "warm", "debian"}, strings.Fields(tc.flags)...)...)
			if code != tc.code || !strings.Contains(s.stderr.String(), tc.says) {
				t.Fatalf("exit code %d: %s", code, &s.stderr)
			}
			if !f.called("POST /images/img_default/warm") || f.lastBody(t) != tc.sent {
				t.Errorf("calls: %q, sent %s", f.calls, f.lastBody(t))
			}
			if code == 0 && s.stdout.String() != "img_default\n" {
				t.Errorf("printed %q", &s.stdout)
			}
		})
	}
}
