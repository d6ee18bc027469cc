package ringmq.rig;

import java.io.BufferedReader;
import java.io.FileOutputStream;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.io.UncheckedIOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutionException;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.TimeUnit;
import java.util.concurrent.TimeoutException;
import java.util.function.Predicate;

/**
 * One server process. It never outlives the tests: it is killed by its own pid when it is closed, when this JVM ends, and
 * (through the kernel's parent-death signal) when this JVM is killed.
 */
public final class Server implements AutoCloseable {
    /** How long a server may take to say that it is ready: a JVM on a busy machine takes 10 s and more. */
    private static final Duration START_MAX = Duration.ofSeconds(90);

    private static final Set<Process> RUNNING = ConcurrentHashMap.newKeySet();
    // The parent-death signal is sent when the *thread* that started the process ends, so one that never ends starts them all.
    private static final ExecutorService STARTER = Executors.newSingleThreadExecutor(task -> {
        Thread thread = new Thread(task, "server-starter");
        thread.setDaemon(true);
        return thread;
    });

    static {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> RUNNING.forEach(Process::destroyForcibly)));
    }

    private final Process process;
    private final Path log;

    private Server(Process process, Path log) {
        this.process = process;
        this.log = log;
    }

    /**
     * Starts a process and waits for the line on its stdout that says it is ready. Both its outputs go to the file {@code log}.
     * Fails with what it printed if it ends first.
     */
    public static Server start(List<String> command, Path log, Predicate<String> isReady) {
        List<String> tied = new ArrayList<>(List.of("setpriv", "--pdeathsig", "KILL", "--"));
        tied.addAll(command);
        try {
            Files.createDirectories(log.getParent());
            Process process = STARTER.submit(() -> new ProcessBuilder(tied)
                .redirectError(ProcessBuilder.Redirect.appendTo(log.toFile()))
                .start()).get();
            RUNNING.add(process);
            process.onExit().thenAccept(RUNNING::remove);
            CompletableFuture<Void> ready = new CompletableFuture<>();
            Thread reader = new Thread(() -> copyOutput(process, log, isReady, ready), "output-of-" + process.pid());
            reader.setDaemon(true);
            reader.start();
            try {
                ready.get(START_MAX.toSeconds(), TimeUnit.SECONDS);
                return new Server(process, log);
            } catch (ExecutionException | TimeoutException e) {
                process.destroyForcibly();
                throw new AssertionError("did not start: " + command + "\n" + tail(log), e);
            }
        } catch (IOException e) {
            throw new UncheckedIOException(e);
        } catch (InterruptedException | ExecutionException e) {
            throw new AssertionError("could not start " + command, e);
        }
    }

    /** SIGTERM; returns the exit code. Fails if it does not end within {@code limit}. */
    public int stop(Duration limit) {
        process.destroy();
        try {
            if (!process.waitFor(limit.toMillis(), TimeUnit.MILLISECONDS)) {
                process.destroyForcibly();
                throw new AssertionError("did not stop within " + limit.toSeconds() + " s of SIGTERM\n" + tail(log));
            }
            return process.exitValue();
        } catch (InterruptedException e) {
            throw new AssertionError("interrupted while stopping a server", e);
        }
    }

    /** SIGKILL, and waits until it is gone. */
    public void kill() {
        process.destroyForcibly();
        try {
            process.waitFor();
        } catch (InterruptedException e) {
            throw new AssertionError("interrupted while killing a server", e);
        }
    }

    @Override
    public void close() {
        kill();
    }

    private static void copyOutput(Process process, Path log, Predicate<String> isReady, CompletableFuture<Void> ready) {
        try (BufferedReader lines = new BufferedReader(new InputStreamReader(process.getInputStream(), StandardCharsets.UTF_8));
            PrintStream out = new PrintStream(new FileOutputStream(log.toFile(), true), true, StandardCharsets.UTF_8)) {
            for (String line = lines.readLine(); line != null; line = lines.readLine()) {
                out.println(line);
                if (isReady.test(line)) {
                    ready.complete(null);
                }
            }
        } catch (IOException e) {
            ready.completeExceptionally(e);
        }
        ready.completeExceptionally(new IOException("it ended before it was ready"));
    }

    private static String tail(Path log) {
        try {
            List<String> lines = Files.readAllLines(log, StandardCharsets.ISO_8859_1);
            return String.join("\n", lines.subList(Math.max(0, lines.size() - 40), lines.size()));
        } catch (IOException e) {
            return "(no output: " + e + ")";
        }
    }
}
