package access

// Right is a permission that a request requires. No caller has the zero Right.
type Right uint8

// The rights. Open is for requests that need no key.
const (
	Open  Right = 1 << iota
	Read        // look at objects
	Write       // create, change and delete objects, and run programs in guests
	Admin       // manage keys, and create images from files on the host
)

func (r Right) String() string {
	switch r {
	case Open:
		return "open"
	case Read:
		return "read"
	case Write:
		return "write"
	case Admin:
		return "admin"
	}
	return "none"
}

// Rights is a set of rights; the zero value allows nothing.
type Rights uint8

// AllRights is the set that every key has today.
const AllRights = Rights(Read | Write | Admin)

// Include reports whether the set allows a request that requires r.
func (s Rights) Include(r Right) bool { return r == Open || s&Rights(r) != 0 }
