//go:build linux

package trace

//go:generate go run github.com/cilium/ebpf/cmd/bpf2go -cc clang-14 -strip llvm-strip-14 -tags linux -no-global-types -output-stem trace bpf trace.bpf.c -- -mcpu=v3 -Wall -Werror -idirafter /usr/include/x86_64-linux-gnu -idirafter /usr/include/aarch64-linux-gnu

// What trace.bpf.c and user space share: its struct slot, struct share, and numbers of tenants.

// A slot consists of a pool, the ancestor of its control group, its tenant, the numbers of two
// shares, the Process of the last event, and the number of events. The pool is the two addresses, IPv6 or IPv4-mapped, the
// destination port, the Call, the cookie of the network namespace, and the number of the control group. All but the addresses
// and the command are in the byte order of the host. A bind has no destination.
//
// The last two slots have no pool. They count the events of all pools without a slot: in the table of failures connects and binds,
// in that of closes only the first.
const (
	addressSize = 16

	slotSource        = 0
	slotDest          = slotSource + addressSize
	slotPort          = slotDest + addressSize
	slotCall          = slotPort + 4
	slotNamespace     = slotCall + 4
	slotCgroup        = slotNamespace + 8
	slotAncestor      = slotCgroup + 8
	slotTenant        = slotAncestor + 8
	slotTenantShare   = slotTenant + 8        // 4 bytes
	slotAncestorShare = slotTenantShare + 4   // 4 bytes
	slotCommand       = slotAncestorShare + 4 // ends with 0, or fills its 16 bytes
	slotProcess       = slotCommand + commandSize
	slotEvents        = slotProcess + 4 + 4 // 4 bytes are unused
	slotSize          = slotEvents + 8

	commandSize = 16 // TASK_COMM_LEN in include/linux/sched.h
)

// slotsOfRest is how many slots have no pool.
const slotsOfRest = 2

// A share counts the slots of a tenant, or of an ancestor of a tenant: of all control groups below
// it. Both numbers have 4 bytes and only rise. Only the program writes the first, and only user space the second.
//
// The number of a share is a hash. So two tenants can have the same one, and get one quota.
//
// The last share has the limits of slots instead: of a tenant, and of an ancestor of a tenant.
const (
	shareTaken    = 0
	shareReturned = shareTaken + 4
	shareSize     = shareReturned + 4

	limitTenant   = shareTaken
	limitAncestor = shareReturned

	shares   = 1 << 16
	limitsAt = shares
)

// The tenant of a network namespace is who made it: that itself, if it belongs to the initial user namespace,
// so that root made it; else the user who made the outermost of the user namespaces that it is in; else, if
// that is root, this user namespace. So a user, or a container with a user namespace, that makes thousands of
// network namespaces is one tenant.
//
// Tenants are numbered as follows. Without namespaces, the number is that of the ancestor.
const (
	tenantOfUser   = 1 << 62 // and the user
	tenantOfUserNS = 1 << 61 // and the inode of the user namespace
)
