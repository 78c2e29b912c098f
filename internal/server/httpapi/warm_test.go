package httpapi_test

import (
	"slices"
	"testing"

	"github.com/hatchvm/hatch/api"
	"github.com/hatchvm/hatch/internal/errs"
)

func TestWarmImage(t *testing.T) {
	s := newServer(t)
	body := `{"vcpu_count":2,"mem_mib":256,"disk_mib":128,"boot_args":"quiet","enable_network":false,"vmm":"qemu"}`
	r := s.call(t, "POST", "/images/img_default/warm", body)
	wantStatus(t, r, 202)
	asked := s.vms.request
	if asked.ImageID != "img_default" || *asked.VCPUs != 2 || *asked.MemMiB != 256 || *asked.DiskMiB != 128 ||
		*asked.BootArgs != "quiet" || *asked.EnableNetwork || asked.Driver != "qemu" {
		t.Errorf("asked for %+v", asked)
	}
	got := decode[api.Image](t, r).Warm
	if len(got) != 2 || got[0].State != api.WarmBuilding || got[0].MemMiB != 256 || got[1].Reason != "it has panicked" {
		t.Errorf("answered %+v", got)
	}
	got = decode[api.Image](t, s.call(t, "GET", "/images/img_default", "")).Warm
	if len(got) != 2 || got[0].State != api.WarmFailed || got[1].State != api.WarmBuilding {
		t.Errorf("shown %+v", got)
	}
	for _, img := range decode[[]api.Image](t, s.call(t, "GET", "/images", "")) {
		if img.Warm != nil {
			t.Errorf("listed %+v", img.Warm)
		}
	}
	wantStatus(t, s.call(t, "DELETE", "/images/img_default", ""), 200)
	if !slices.Equal(s.warm.forgotten, []string{"img_default"}) {
		t.Errorf("forgotten: %v", s.warm.forgotten)
	}
}

func TestWarmImageRefusals(t *testing.T) {
	s := newServer(t)
	if r := s.call(t, "POST", "/images/img_other/warm", ""); r.StatusCode != 404 || r.problem(t).Code != "image_not_found" {
		t.Errorf("an unknown image: %s", r.body)
	}
	wantStatus(t, s.call(t, "POST", "/images/img_default/warm", `{"mem_mib":1}`), 400)
	wantStatus(t, s.call(t, "POST", "/images/img_default/warm", `{"name":"x"}`), 400)
	if len(s.warm.kept) != 0 {
		t.Errorf("asked for %+v", s.warm.kept)
	}
	for code, kind := range map[string]errs.Kind{"warm_off": errs.Unsupported, "warm_queue_full": errs.TooMany} {
		s.warm.err = errs.New(kind, code, "no")
		if r := s.call(t, "POST", "/images/img_default/warm", ""); r.StatusCode < 400 || r.problem(t).Code != code {
			t.Errorf("%s: %d %s", code, r.StatusCode, r.body)
		}
	}
}
