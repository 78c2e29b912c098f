package main

import (
	"strings"
	"testing"
)

func TestPick(t *testing.T) {
	among := []named{{"vm_aaa", "web"}, {"vm_aab", "db"}, {"vm_abc", "aaa"}, {"vm_b", ""}, {"vm_bc", "vm-x"}}
	for ref, want := range map[string]string{
		"vm_aaa": "vm_aaa",
		"web":    "vm_aaa",
		"aaa":    "vm_abc", // a name wins over an id's beginning
		"vm_b":   "vm_b",   // a whole id wins over a beginning
		"ab":     "vm_abc",
		"vm_aab": "vm_aab",
		"bc":     "vm_bc",
	} {
		t.Run(ref, func(t *testing.T) {
			if got, err := pick("VM", ref, among); err != nil || got.id != want {
				t.Errorf("%q: got %v, %v", ref, got, err)
			}
		})
	}
	for ref, want := range map[string]string{
		"":     "name is empty",
		"zzz":  "there is no VM",
		"we":   "there is no VM", // beginnings of names do not count
		"vm_a": "vm_aaa (web), vm_aab (db), vm_abc (aaa)",
		"vm_":  "vm_aaa (web), vm_aab (db), vm_abc (aaa), vm_b, vm_bc (vm-x)",
	} {
		t.Run(ref, func(t *testing.T) {
			if _, err := pick("VM", ref, among); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: got %v", ref, err)
			}
		})
	}
}

func TestSize(t *testing.T) {
	for text, want := range map[string]int{"512": 512, "512m": 512, "512MiB": 512, "1g": 1024, "2GB": 2048, "1t": 1 << 20} {
		t.Run(text, func(t *testing.T) {
			if got, err := size("memory", text); err != nil || *got != want {
				t.Errorf("%q: got %v, %v", text, got, err)
			}
		})
	}
	for _, text := range []string{"", "1.5g", "-1", "1k", "g", "1 g", "99999999999999"} {
		t.Run(text, func(t *testing.T) {
			if _, err := size("memory", text); err == nil {
				t.Errorf("%q was taken", text)
			}
		})
	}
}
