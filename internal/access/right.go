package access

import (
	"slices"
	"strings"
)

// Noun is a kind of object that a right is about.
type Noun string

// The nouns of rights, each of which an operation needs.
const (
	VMs       Noun = "vms"
	Exec      Noun = "exec" // commands, the console, and ports of guests
	Files     Noun = "files"
	Snapshots Noun = "snapshots"
	Images    Noun = "images"
	Templates Noun = "templates"
	Routes    Noun = "routes"
	Webhooks  Noun = "webhooks"
	Events    Noun = "events"
	Keys      Noun = "keys"
	Users     Noun = "users"
	Audit     Noun = "audit"
	Quotas    Noun = "quotas"
)

// nouns has each noun at the position of its two bits in [Rights].
var nouns = []Noun{VMs, Exec, Files, Snapshots, Images, Templates, Routes, Webhooks, Events, Keys, Users, Audit, Quotas}

// Right is a permission that a request requires. No caller has the zero Right. To write
// does not include to read.
type Right struct {
	Noun  Noun
	Write bool
}

// Read is the right to look at objects of a noun.
func Read(noun Noun) Right { return Right{Noun: noun} }

// Write is the right to create, change and delete objects of a noun.
func Write(noun Noun) Right { return Right{Noun: noun, Write: true} }

// Rights that are about no noun.
var (
	Open   = Right{Noun: "open"}               // for requests that need no key
	AnyKey = Right{Noun: "any"}                // for requests that any valid key may make
	Admin  = Right{Noun: "admin", Write: true} // to read and expose the host, and to manage users; includes all others
)

// String returns the right as the API calls it, its scope.
func (r Right) String() string {
	switch {
	case r == Open, r == AnyKey, r == Admin:
		return string(r.Noun)
	case r.Noun == "":
		return "none"
	case r.Write:
		return string(r.Noun) + ":write"
	}
	return string(r.Noun) + ":read"
}

// ParseRight returns the right that the API calls text, of those that a key can have.
func ParseRight(text string) (r Right, ok bool) {
	if text == Admin.String() {
		return Admin, true
	}
	noun, verb, _ := strings.Cut(text, ":")
	r = Right{Noun: Noun(noun), Write: verb == "write"}
	return r, r.String() == text && slices.Contains(nouns, r.Noun)
}

// EveryRight returns all rights that a key can have, in the order of the documentation.
func EveryRight() []Right {
	all := make([]Right, 0, 2*len(nouns)+1)
	for _, noun := range nouns {
		all = append(all, Read(noun), Write(noun))
	}
	return append(all, Admin)
}

// Rights is a set of rights; the zero value allows nothing.
type Rights uint64

// AllRights is the set of every right.
const AllRights = ^Rights(0)

// RightsOf returns a set of rights. Admin includes all others.
func RightsOf(rights ...Right) Rights {
	var set Rights
	for _, r := range rights {
		set |= r.bits()
	}
	return set
}

// bits returns the bits that a key has with a right, none for Open and AnyKey, which no
// key needs to be given.
func (r Right) bits() Rights {
	if r == Admin {
		return AllRights
	}
	at := slices.Index(nouns, r.Noun)
	if at < 0 {
		return 0
	}
	bit := Rights(1) << (2 * at)
	if r.Write {
		bit <<= 1
	}
	return bit
}

// Include reports whether the set allows a request that requires r.
func (s Rights) Include(r Right) bool {
	switch r {
	case Open:
		return true
	case AnyKey:
		return s != 0
	}
	bits := r.bits()
	return bits != 0 && s&bits == bits
}

// Covers reports whether the set has every right of another.
func (s Rights) Covers(other Rights) bool { return s&other == other }

// List returns the rights of a set, and only Admin if that is one of them.
func (s Rights) List() []Right {
	if s.Include(Admin) {
		return []Right{Admin}
	}
	return slices.DeleteFunc(EveryRight(), func(r Right) bool { return !s.Include(r) })
}
