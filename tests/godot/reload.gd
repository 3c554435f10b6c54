# Loads, uses and unloads the extension again and again: nothing may crash, stay mapped, stay open or grow.
extends SceneTree

const EXTENSION := "res://vkmqa.gdextension"
const LIBRARY := "libvkmqa_godot"
const WINDOWS := 5
const ROUNDS := 3 # in each
# Of resident memory in the window in which it grew least: the engine compiles its own shaders in some of them.
const GROWTH_KIB := 4096

var failures := 0


func check(condition: bool, text: String) -> void:
	if not condition:
		failures += 1
		printerr("FAILED: ", text)


func lines_with(path: String, word: String) -> PackedStringArray:
	var found := PackedStringArray()
	var file := FileAccess.open(path, FileAccess.READ)
	while not file.eof_reached(): # files of /proc have no length
		var line := file.get_line()
		if line.contains(word):
			found.append(line)
	return found


func resident_kib() -> int:
	return int(lines_with("/proc/self/status", "VmRSS")[0].split(":")[1])


# null: a device of vkmqa's own.
func use(rendering_device: RenderingDevice) -> void:
	var attention: Node = ClassDB.instantiate("VkmqaAttention") # the name would hold the script to the extension
	root.add_child(attention)
	var one := PackedFloat32Array()
	one.resize(16)
	one.fill(0.75)
	var error: int = attention.create(rendering_device, 2, 1, 16, 4) if rendering_device \
			else attention.create_own_device("", 2, 1, 16, 4)
	check(error == OK, attention.get_message())
	check(attention.append(one, one) == OK and attention.attend(one + one) == OK, attention.get_message())
	check(attention.wait() == OK and attention.get_output() == one + one, attention.get_message())
	attention.free()


func _initialize() -> void:
	var device := RenderingServer.get_rendering_device()
	var local := RenderingServer.create_local_rendering_device()
	var files := PackedInt32Array()
	var threads := PackedInt32Array()
	var resident := PackedInt32Array()
	var growth := 1 << 30
	for i in WINDOWS * ROUNDS:
		use(device)
		use(local)
		use(null)
		check(GDExtensionManager.unload_extension(EXTENSION) == GDExtensionManager.LOAD_STATUS_OK, "unload")
		check(not ClassDB.class_exists("VkmqaAttention"), "the class has gone")
		var mapped := lines_with("/proc/self/maps", LIBRARY)
		check(mapped.is_empty(), "still mapped: %s" % mapped)
		if i % ROUNDS == ROUNDS - 1:
			files.append(DirAccess.get_files_at("/proc/self/fd").size())
			threads.append(DirAccess.get_directories_at("/proc/self/task").size())
			resident.append(resident_kib())
			if resident.size() > 1:
				growth = mini(growth, resident[-1] - resident[-2])
		check(GDExtensionManager.load_extension(EXTENSION) == GDExtensionManager.LOAD_STATUS_OK, "load")
		await process_frame
	check(files[0] > 0 and files[-1] <= files[0], "files are left open")
	check(threads[0] > 0 and threads[-1] <= threads[0], "threads are left running")
	check(resident[0] > 0 and growth <= GROWTH_KIB, "memory grows by %d KiB in %d rounds" % [growth, ROUNDS])
	print("after every %d rounds: %s files open, %s threads, %s KiB resident" % [ROUNDS, files, threads, resident])
	local.free()
	print("all checks passed" if failures == 0 else "%d checks failed" % failures)
	quit(1 if failures else 0)
