package mesh.apps.dubbo;

import java.util.Map;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.TimeUnit;
import mesh.apps.Console;
import mesh.apps.Consumer;
import mesh.apps.Flags;
import mesh.apps.Shop;
import org.apache.dubbo.config.ApplicationConfig;
import org.apache.dubbo.config.ReferenceConfig;
import org.apache.dubbo.config.RegistryConfig;
import org.apache.dubbo.config.bootstrap.DubboBootstrap;
import org.apache.dubbo.rpc.RpcContext;
import org.apache.dubbo.rpc.RpcException;
import org.apache.dubbo.rpc.service.GenericService;

/** A Dubbo 3 consumer: {@code --to host:port} (or {@code --registry url}), {@code --version, --group, --connections, --provided-by}. */
public final class DubboConsumer extends Consumer {
    private static final int TIMEOUT_MILLIS = 20_000;

    private final DubboShop shop;

    private DubboConsumer(Flags flags) {
        ApplicationConfig application = new ApplicationConfig("dubbo-consumer");
        application.setQosEnable(false);
        RegistryConfig registry = new RegistryConfig(flags.get("registry", RegistryConfig.NO_AVAILABLE));
        DubboBootstrap.getInstance().application(application).registry(registry).start();

        ReferenceConfig<DubboShop> reference = new ReferenceConfig<>();
        reference.setInterface(DubboShop.class);
        refer(reference, flags);
        shop = reference.get();

        ReferenceConfig<DubboShop> other = new ReferenceConfig<>();
        other.setInterface(DubboShop.class);
        refer(other, flags);
        other.setVersion("9.9.9");

        ReferenceConfig<GenericService> generic = new ReferenceConfig<>();
        generic.setInterface(DubboShop.class.getName());
        generic.setGeneric("true");
        refer(generic, flags);

        cases.put("runtime-exception", () -> {
            try {
                shop.crash("boom");
            } catch (IllegalStateException e) {
                return same("boom", e.getMessage());
            }
            throw new AssertionError("no exception");
        });
        cases.put("future", () -> shop.later(20).get(10, TimeUnit.SECONDS));
        cases.put("async", () -> {
            CompletableFuture<String> answer = RpcContext.getClientAttachment().asyncCall(() -> shop.echo("async"));
            return same("async", answer.get(10, TimeUnit.SECONDS));
        });
        cases.put("other-version", () -> {
            try {
                other.get().who();
            } catch (RpcException e) {
                return describe(e);
            }
            throw new AssertionError("no exception");
        });
        cases.put("generic", () -> {
            Object answer = generic.get().$invoke("echo", new String[] {"java.lang.String"}, new Object[] {"generic"});
            return (String) same("generic", answer);
        });
    }

    /** No retries and no connection check at start: what the mesh does is what is seen. */
    private static void refer(ReferenceConfig<?> reference, Flags flags) {
        String to = flags.get("to", null);
        if (to != null) {
            reference.setUrl("dubbo://" + to + "/" + DubboShop.class.getName());
        }
        reference.setVersion(flags.get("version", null));
        reference.setGroup(flags.get("group", null));
        reference.setProvidedBy(flags.get("provided-by", null));
        reference.setTimeout(TIMEOUT_MILLIS);
        reference.setRetries(0);
        reference.setCheck(false);
        reference.setConnections(flags.number("connections", 1));
    }

    @Override
    protected Shop shop() {
        return shop;
    }

    @Override
    protected Headers headers(Map<String, String> send) {
        send.forEach(RpcContext.getClientAttachment()::setAttachment);
        Map<String, String> received = shop.headers();
        return new Headers(received, RpcContext.getClientResponseContext().getAttachments());
    }

    @Override
    protected String label(String method, Map<String, String> headers, int timeoutMillis) {
        headers.forEach(RpcContext.getClientAttachment()::setAttachment);
        RpcContext.getClientAttachment().setObjectAttachment("timeout", timeoutMillis);
        try {
            return switch (method) {
                case "who" -> shop.who();
                case "audit" -> shop.audit();
                default -> shop.slow(Integer.parseInt(method.substring("slow".length())));
            };
        } finally {
            RpcContext.getClientAttachment().clearAttachments();
        }
    }

    @Override
    protected void notice(String id) {
        RpcContext.getClientAttachment().asyncCall(() -> shop.notice(id));
    }

    public static void main(String[] args) {
        Console console = new Console();
        new DubboConsumer(new Flags(args)).serve(console);
    }
}
