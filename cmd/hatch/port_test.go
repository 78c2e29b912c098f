package main

import (
	"reflect"
	"strings"
	"testing"

	"github.com/hatchvm/hatch/api"
)

func TestReadPorts(t *testing.T) {
	from := []string{"192.0.2.0/24"}
	for text, want := range map[string]api.Port{
		"80":                {Guest: 80, AllowedCIDRs: from},
		"8080:80":           {Guest: 80, Host: 8080, AllowedCIDRs: from},
		"8080:80/tcp":       {Guest: 80, Host: 8080, AllowedCIDRs: from},
		"127.0.0.1:8080:80": {Guest: 80, Host: 8080, AllowedCIDRs: []string{"127.0.0.1/32"}},
		"0.0.0.0:8080:80":   {Guest: 80, Host: 8080, AllowedCIDRs: []string{"0.0.0.0/0"}},
		"0.0.0.0::80":       {Guest: 80, AllowedCIDRs: []string{"0.0.0.0/0"}},
		"65535:1":           {Guest: 1, Host: 65535, AllowedCIDRs: from},
	} {
		if got, err := readPorts("publish", []string{text}, from); err != nil || !reflect.DeepEqual(got, []api.Port{want}) {
			t.Errorf("%s: %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":", "0", "80:0", "0:80", "65536", "-1", "+80", "80:", "x", "80/udp", "8080:80:1", "1.2.3.4:8080:80", "::1:8080:80", "127.0.0.1:80:80:80", "8000-8010"} {
		if got, err := readPorts("publish", []string{text}, nil); err == nil || !strings.Contains(err.Error(), "--publish") {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

func TestRepublish(t *testing.T) {
	had := []api.Port{{Guest: 80, Host: 8080, Name: "web"}, {Guest: 22, Host: 26001}}
	got, err := republish(had, []api.Port{{Guest: 80, Host: 9090}, {Guest: 81}}, []int{22})
	if want := []api.Port{{Guest: 80, Host: 9090, Name: "web"}, {Guest: 81}}; err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, %v, want %+v", got, err, want)
	}
	if had[0].Host != 8080 || had[1].Guest != 22 {
		t.Errorf("the ports themselves have changed: %+v", had)
	}
	if _, err := republish(had, nil, []int{23}); err == nil {
		t.Error("a port that is not published is removed")
	}
}
