//go:build linux

package connectfail

import (
	"slices"

	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"
)

// The states of a connect() that finds no port, from include/net/tcp_states.h.
const (
	tcpSynSent = 2
	tcpClose   = 7
)

// A slot consists of a pool, the ancestor of its control group, its tenant, the numbers of two
// shares, and the failures. The pool is the two addresses, as in the layout, the destination port,
// the cookie of the network namespace, and the number of the control group. All but the addresses
// are in the byte order of the host.
const (
	addressSize = 16

	slotSource        = 0
	slotDest          = slotSource + addressSize
	slotPort          = slotDest + addressSize
	slotNamespace     = slotPort + 8
	slotCgroup        = slotNamespace + 8
	slotAncestor      = slotCgroup + 8
	slotTenant        = slotAncestor + 8
	slotTenantShare   = slotTenant + 8      // 4 bytes
	slotAncestorShare = slotTenantShare + 4 // 4 bytes
	slotFailures      = slotAncestorShare + 4
	slotSize          = slotFailures + 8

	poolSize = slotAncestor
)

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

	shareBits     = 16
	shares        = 1 << shareBits
	limitsAt      = shares
	shareHash     = -0x61c8864680b583eb // 2⁶⁴ divided by the golden ratio, see hash_64 in include/linux/hash.h
	ancestorLevel = 2                   // see storeAncestor
)

// Tenants are numbered as follows. Without namespaces, the number is that of the ancestor.
const (
	tenantOfUser    = 1 << 62 // and the user
	tenantOfUserNS  = 1 << 61 // and the inode of the user namespace
	maxUserNSLevels = 33      // see create_user_ns in kernel/user_namespace.c
)

// Offsets of the variables of the program from the frame pointer.
const (
	frameSlot   = -slotFailures // the slot without the failures
	frameIndex  = frameSlot - 8 // of a slot or of the limits, 4 bytes
	frameLimits = frameIndex - 8
	frameNet    = frameLimits - 8
	frameUserNS = frameNet - 8
	frameNumber = frameUserNS - 8
)

// Registers that survive a call.
const (
	regRecord        = asm.R6
	regSlot          = asm.R7
	regTenantShare   = asm.R8
	regAncestorShare = asm.R9
)

// Labels of the program.
const (
	grouped  = "grouped"
	owner    = "owner"
	top      = "top"
	tenanted = "tenanted"
	known    = "known"
	others   = "others"
	count    = "count"
	end      = "end"
)

// instructions returns the program. It adds one to the slot of the pool of a failed connect(). The
// first failure in a pool takes a free slot, if the tenant and the ancestor of the control group have
// not used up their shares. Otherwise the last slot counts it. If s is nil, network namespaces are not known,
// and without ancestors, a control group is its own one.
//
// The kernel runs the program at each change of state of each socket. So the checks that end it for
// most of these come first.
func instructions(l layout, m maps, s *structs, ancestors bool) asm.Instructions {
	lastSlot := int32(m.slots.MaxEntries() - 1)
	return slices.Concat(
		asm.Instructions{asm.Mov.Reg(regRecord, asm.R1)},
		endUnless(l.oldState, tcpSynSent),
		endUnless(l.newState, tcpClose),
		endUnless(l.sourcePort, 0),
		endUnless(l.protocol, unix.IPPROTO_TCP),

		copyAddress(l.source, frameSlot+slotSource),
		copyAddress(l.dest, frameSlot+slotDest),
		load(l.destPort),
		asm.Instructions{asm.StoreMem(asm.RFP, frameSlot+slotPort, asm.R2, asm.DWord)},
		storeNamespace(l, s),
		storeCgroup(),

		call(asm.FnMapLookupElem, m.index.FD(), frameSlot),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, known)},

		// This is the first failure of its pool.
		storeAncestor(ancestors),
		storeTenant(s),
		storeShares(),
		asm.Instructions{
			asm.Mov.Imm(asm.R2, limitsAt),
			asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
		},
		call(asm.FnMapLookupElem, m.shares.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // this never happens, but the verifier does not know it
			asm.LoadMem(asm.R2, asm.R0, 0, asm.DWord),
			asm.StoreMem(asm.RFP, frameLimits, asm.R2, asm.DWord),
		},
		checkShare(m, regTenantShare, frameSlot+slotTenantShare, frameLimits+limitTenant),
		checkShare(m, regAncestorShare, frameSlot+slotAncestorShare, frameLimits+limitAncestor),

		call(asm.FnMapPopElem, m.free.FD(), frameIndex),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, others)},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never
			asm.Mov.Reg(regSlot, asm.R0),
		},
		copySlot(),
		call(asm.FnMapUpdateElem, m.index.FD(), frameSlot, frameIndex),
		asm.Instructions{
			asm.JNE.Imm(asm.R0, 0, "taken"),
			asm.Mov.Imm(asm.R1, 1),
			asm.AddAtomic.Mem(regTenantShare, asm.R1, asm.Word, shareTaken),
			asm.AddAtomic.Mem(regAncestorShare, asm.R1, asm.Word, shareTaken),
			asm.Mov.Reg(asm.R0, regSlot),
			asm.Ja.Label(count),
		},

		// Another CPU has just added the pool: give the slot back.
		label("taken", call(asm.FnMapPushElem, m.free.FD(), frameIndex)),
		call(asm.FnMapLookupElem, m.index.FD(), frameSlot),
		asm.Instructions{asm.JNE.Imm(asm.R0, 0, known)},

		asm.Instructions{
			asm.Mov.Imm(asm.R2, lastSlot).WithSymbol(others),
			asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
		},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never
			asm.Ja.Label(count),

			asm.LoadMem(asm.R2, asm.R0, 0, asm.Word).WithSymbol(known),
			asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
		},
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never

			asm.Mov.Imm(asm.R1, 1).WithSymbol(count),
			asm.AddAtomic.Mem(asm.R0, asm.R1, asm.DWord, slotFailures),

			asm.Mov.Imm(asm.R0, 1).WithSymbol(end), // 0 would hide the event from perf(1)
			asm.Return(),
		},
	)
}

// storeNamespace stores the cookie of the socket's network namespace, or 0.
func storeNamespace(l layout, s *structs) asm.Instructions {
	if s == nil {
		return asm.Instructions{
			asm.Mov.Imm(asm.R2, 0),
			asm.StoreMem(asm.RFP, frameSlot+slotNamespace, asm.R2, asm.DWord),
		}
	}
	return slices.Concat(
		load(l.socket),
		asm.Instructions{asm.StoreMem(asm.RFP, frameNet, asm.R2, asm.DWord)},
		follow(frameNet, s.socketNet, frameNet, 8),
		follow(frameNet, s.netCookie, frameSlot+slotNamespace, 8),
	)
}

// storeCgroup stores the number of the caller's control group.
func storeCgroup() asm.Instructions {
	return asm.Instructions{
		asm.FnGetCurrentCgroupId.Call(),
		asm.StoreMem(asm.RFP, frameSlot+slotCgroup, asm.R0, asm.DWord),
	}
}

// storeAncestor stores the number of that ancestor of the caller's control group that is two levels
// below the root, or of the control group itself if it is not deeper: a service of systemd, or the
// slice of a user. A user can make any number of control groups below that. The number is 0 for the
// root.
func storeAncestor(ancestors bool) asm.Instructions {
	if !ancestors {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.RFP, frameSlot+slotCgroup, asm.DWord),
			asm.StoreMem(asm.RFP, frameSlot+slotAncestor, asm.R2, asm.DWord),
		}
	}
	return asm.Instructions{
		asm.Mov.Imm(asm.R1, ancestorLevel),
		asm.FnGetCurrentAncestorCgroupId.Call(),
		asm.JNE.Imm(asm.R0, 0, grouped),
		asm.Mov.Imm(asm.R1, ancestorLevel-1),
		asm.FnGetCurrentAncestorCgroupId.Call(),
		asm.StoreMem(asm.RFP, frameSlot+slotAncestor, asm.R0, asm.DWord).WithSymbol(grouped),
	}
}

// storeTenant stores the number of the tenant, which is
//   - the network namespace, if it belongs to the initial user namespace, so that root made it;
//   - else the user who made the outermost of the user namespaces that it is in;
//   - else, if that is root, this user namespace.
//
// So a user, or a container with a user namespace, that makes thousands of network namespaces is
// one tenant.
func storeTenant(s *structs) asm.Instructions {
	if s == nil {
		return asm.Instructions{
			asm.LoadMem(asm.R2, asm.RFP, frameSlot+slotAncestor, asm.DWord),
			asm.StoreMem(asm.RFP, frameSlot+slotTenant, asm.R2, asm.DWord),
		}
	}
	number := asm.LoadMem(asm.R2, asm.RFP, frameNumber, asm.Word)
	return slices.Concat(
		asm.Instructions{
			asm.LoadMem(asm.R2, asm.RFP, frameSlot+slotNamespace, asm.DWord),
			asm.StoreMem(asm.RFP, frameSlot+slotTenant, asm.R2, asm.DWord),
		},
		follow(frameNet, s.netUserNS, frameUserNS, 8),
		follow(frameUserNS, s.userLevel, frameNumber, 4),
		asm.Instructions{
			number,
			asm.JEq.Imm(asm.R2, 0, tenanted),
			asm.Mov.Imm(regSlot, maxUserNSLevels),
		},
		label(owner, follow(frameUserNS, s.userLevel, frameNumber, 4)),
		asm.Instructions{
			number,
			asm.JLE.Imm(asm.R2, 1, top),
		},
		follow(frameUserNS, s.userParent, frameUserNS, 8),
		asm.Instructions{
			asm.Sub.Imm(regSlot, 1),
			asm.JNE.Imm(regSlot, 0, owner),
		},
		label(top, follow(frameUserNS, s.userOwner, frameNumber, 4)),
		asm.Instructions{
			number,
			asm.LoadImm(asm.R3, tenantOfUser, asm.DWord),
			asm.JNE.Imm(asm.R2, 0, "numbered"),
		},
		follow(frameUserNS, s.userInode, frameNumber, 4),
		asm.Instructions{
			number,
			asm.LoadImm(asm.R3, tenantOfUserNS, asm.DWord),
			asm.Or.Reg(asm.R2, asm.R3).WithSymbol("numbered"),
			asm.StoreMem(asm.RFP, frameSlot+slotTenant, asm.R2, asm.DWord),
		},
	)
}

// storeShares stores the numbers of the shares of the tenant and of the ancestor.
func storeShares() asm.Instructions {
	const shift = 64 - shareBits
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.RFP, frameSlot+slotTenant, asm.DWord).WithSymbol(tenanted),
		asm.LoadImm(asm.R3, shareHash, asm.DWord),
		asm.Mul.Reg(asm.R2, asm.R3),
		asm.Mov.Reg(asm.R4, asm.R2),
		asm.RSh.Imm(asm.R4, shift),
		asm.StoreMem(asm.RFP, frameSlot+slotTenantShare, asm.R4, asm.Word),
		asm.LoadMem(asm.R4, asm.RFP, frameSlot+slotAncestor, asm.DWord),
		asm.Add.Imm(asm.R2, 1), // so that ancestor 0 has another share than the tenant
		asm.Add.Reg(asm.R2, asm.R4),
		asm.Mul.Reg(asm.R2, asm.R3),
		asm.RSh.Imm(asm.R2, shift),
		asm.StoreMem(asm.RFP, frameSlot+slotAncestorShare, asm.R2, asm.Word),
	}
}

// checkShare loads a share into a register. If it is used up, the program goes on at others. Two
// CPUs can pass this check at once: a tenant gets up to one slot more for each further CPU.
func checkShare(m maps, share asm.Register, number, limit int16) asm.Instructions {
	return slices.Concat(
		call(asm.FnMapLookupElem, m.shares.FD(), int32(number)),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end), // never
			asm.Mov.Reg(share, asm.R0),
			asm.LoadMem(asm.R2, share, shareTaken, asm.Word),
			asm.LoadMem(asm.R3, share, shareReturned, asm.Word),
			asm.Sub.Reg32(asm.R2, asm.R3),
			asm.LoadMem(asm.R3, asm.RFP, limit, asm.Word),
			asm.JGE.Reg(asm.R2, asm.R3, others),
		},
	)
}

// follow reads a member of a structure in the kernel. The variable from has the address of the
// structure. The variable to is 0 if the kernel cannot read the member.
func follow(from int16, member int32, to int32, size int32) asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R3, asm.RFP, from, asm.DWord),
		asm.Add.Imm(asm.R3, member),
		asm.Mov.Imm(asm.R2, size),
		asm.Mov.Reg(asm.R1, asm.RFP),
		asm.Add.Imm(asm.R1, to),
		asm.FnProbeReadKernel.Call(),
	}
}

// label puts a label at the start of some instructions.
func label(name string, program asm.Instructions) asm.Instructions {
	program[0] = program[0].WithSymbol(name)
	return program
}

// unlinkInstructions returns a program that removes the pool of a slot from the index. The number of
// the slot is the first argument of the program.
func unlinkInstructions(m maps) asm.Instructions {
	return slices.Concat(
		storeArgument(),
		call(asm.FnMapLookupElem, m.slots.FD(), frameIndex),
		asm.Instructions{
			asm.JEq.Imm(asm.R0, 0, end),
			asm.Mov.Reg(asm.R2, asm.R0),
			asm.LoadMapPtr(asm.R1, m.index.FD()),
			asm.FnMapDeleteElem.Call(),
			asm.Return().WithSymbol(end),
		},
	)
}

// releaseInstructions returns a program that makes a slot free. The number of the slot is the
// first argument of the program.
func releaseInstructions(m maps) asm.Instructions {
	return slices.Concat(
		storeArgument(),
		call(asm.FnMapPushElem, m.free.FD(), frameIndex),
		asm.Instructions{asm.Return()},
	)
}

// storeArgument stores the first argument of a program of type RAW_TRACEPOINT.
func storeArgument() asm.Instructions {
	return asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, 0, asm.DWord),
		asm.StoreMem(asm.RFP, frameIndex, asm.R2, asm.Word),
	}
}

// load loads a field of the record into R2.
func load(f field) asm.Instructions {
	return asm.Instructions{asm.LoadMem(asm.R2, regRecord, int16(f.offset), width(f.size))}
}

// endUnless ends the program if a field has another value.
func endUnless(f field, value int32) asm.Instructions {
	return append(load(f), asm.JNE.Imm(asm.R2, value, end))
}

// copyAddress copies an address from the record to the frame, in the largest parts that its
// alignment allows. Where protocol has one byte, before Linux 5.6, the address is not aligned.
func copyAddress(from field, to int16) asm.Instructions {
	part := 8
	for from.offset%part != 0 {
		part /= 2
	}
	var program asm.Instructions
	for i := 0; i < addressSize; i += part {
		program = append(program, load(field{from.offset + i, part})...)
		program = append(program, asm.StoreMem(asm.RFP, to+int16(i), asm.R2, width(part)))
	}
	return program
}

// copySlot copies all but the failures from the frame to the slot.
func copySlot() asm.Instructions {
	var program asm.Instructions
	for i := int16(0); i < slotFailures; i += 8 {
		program = append(program,
			asm.LoadMem(asm.R2, asm.RFP, frameSlot+i, asm.DWord),
			asm.StoreMem(regSlot, i, asm.R2, asm.DWord),
		)
	}
	return program
}

// call calls a helper with a map, pointers to variables in the frame, and the flags that the helper
// needs.
func call(helper asm.BuiltinFunc, fd int, variables ...int32) asm.Instructions {
	program := asm.Instructions{asm.LoadMapPtr(asm.R1, fd)}
	for i, v := range variables {
		to := asm.R2 + asm.Register(i)
		program = append(program, asm.Mov.Reg(to, asm.RFP), asm.Add.Imm(to, v))
	}
	switch helper {
	case asm.FnMapUpdateElem:
		program = append(program, asm.Mov.Imm(asm.R4, unix.BPF_NOEXIST))
	case asm.FnMapPushElem:
		program = append(program, asm.Mov.Imm(asm.R3, unix.BPF_ANY))
	}
	return append(program, helper.Call())
}

// width returns the size of a load or store of 1, 2, 4 or 8 bytes.
func width(bytes int) asm.Size {
	switch bytes {
	case 1:
		return asm.Byte
	case 2:
		return asm.Half
	case 4:
		return asm.Word
	default:
		return asm.DWord
	}
}
